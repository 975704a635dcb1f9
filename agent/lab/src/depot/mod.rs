//! `limpet-lab depot`: what a publisher does.

pub mod cli;
mod commands;
pub mod mqtt;
mod place;
mod status;

pub use cli::DepotArgs;
pub use commands::run;
