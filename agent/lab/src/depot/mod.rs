//! `limpet-lab depot`: what a publisher does, and many simulated gateways.

pub mod cli;
mod commands;
mod interrupt;
pub mod mqtt;
mod place;
mod status;
mod swarm;

pub use cli::{DepotArgs, TopicArgs};
pub use commands::run;
pub use place::prefix;
