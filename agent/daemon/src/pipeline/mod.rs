//! From samples to results.
//!
//! [`plan`] fits the configuration and the packages together, [`input`] reads messages, [`worker`] does the work on its thread, and the small
//! state machines beside it ([`timing`], [`range`], [`trigger`], [`publish`]) each hold one rule and take time as a value.

pub mod input;
pub mod plan;
pub mod publish;
pub mod range;
pub mod timing;
pub mod trigger;
pub mod worker;
