//! From samples to results.
//!
//! [`plan`] fits the configuration and the packages together. On its thread, [`worker`] owns the streams ([`stream`]),
//! which make windows of messages ([`input`]), and the models ([`model`]), which run them in batches ([`groups`]); a
//! version on trial has another beside it ([`shadow`]). The small state machines beside them ([`timing`], [`range`], [`trigger`], [`publish`], [`observe`]) each hold one rule and
//! take time as a value.

pub mod groups;
pub mod input;
pub mod model;
pub mod observe;
pub mod plan;
pub mod publish;
pub mod range;
pub mod shadow;
pub mod stream;
pub mod timing;
pub mod trigger;
pub mod worker;
