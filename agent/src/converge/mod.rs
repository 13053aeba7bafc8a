//! From findings to a host that meets them, and back: plan, apply, receipt, revert.
//!
//! ```text
//! Judged ──Plan::of──▶ Plan ──apply──▶ host     every act is in the receipt, with what was
//!            pure        │                │      there before, on disk, before it happens
//!                     person           Receipt ──revert──▶ host
//! ```
//!
//! The plan decides and does nothing; `apply` does and decides nothing. A step has a half that lasts (files)
//! and a half that is lost at a reboot ([`live::Live`]); on a captured tree the first is carried out and the
//! second is left to the machine.

pub mod apply;
pub mod diff;
mod edit;
pub mod live;
pub mod plan;
pub mod receipt;
pub mod revert;
