//! Whether the clock is right: deliveries are judged by it, and results carry its time.

use limpet_wire::result::Clock;

use super::{Finding, Patient};
use crate::wall::{self, Wall};

const CHECK: &str = "clock";

pub fn check(_patient: &Patient<'_>) -> Vec<Finding> {
    let now = wall::now_text().unwrap_or_else(|| "a time before this program was built".to_owned());
    let wall = Wall::now();
    vec![match (wall.offset(), wall.state()) {
        (None, _) => Finding::error(
            CHECK,
            format!(
                "it shows {now}, so results carry the time since boot, and no certificate and no model can be judged"
            ),
            "let it be set: timedatectl set-ntp true, and let UDP port 123 out; or give the gateway a clock with a battery",
        ),
        (_, Clock::Unsynced | Clock::Corrected) => Finding::warning(
            CHECK,
            format!("it shows {now}, which no time server keeps right; results say so: \"clock\":\"unsynced\""),
            "timedatectl set-ntp true, and let UDP port 123 out",
        ),
        (_, Clock::Synced) => Finding::ok(CHECK, format!("it shows {now}, set by a time server")),
    }]
}
