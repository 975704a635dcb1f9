//! Whether the machine is too hot to keep its pace.

use sysinfo::{Component, Components};

use super::{Finding, Patient};

const CHECK: &str = "temperature";
/// So close to the limit it is said before it is reached.
const CLOSE: f64 = 5.0;

pub fn check(patient: &Patient<'_>) -> Vec<Finding> {
    let components = Components::new_with_refreshed_list();
    let parts = components.iter().flat_map(|components| components.iter());
    let hottest = parts.filter_map(Component::temperature).reduce(f32::max);
    let Some(now) = hottest.map(f64::from) else { return vec![Finding::ok(CHECK, "this machine tells none")] };
    let todo = "let air to the gateway, or move it";
    vec![match patient.config.pressure.temperature_c {
        Some(limit) if now >= limit => {
            Finding::error(CHECK, format!("{now:.0} °C, and from {limit:.0} °C on reduced variants run"), todo)
        }
        Some(limit) if now >= limit - CLOSE => {
            let found = format!("{now:.0} °C, close to the {limit:.0} °C of pressure.temperature_c");
            Finding::warning(CHECK, found, todo)
        }
        Some(limit) => Finding::ok(CHECK, format!("{now:.0} °C, below the {limit:.0} °C of pressure.temperature_c")),
        None => Finding::ok(CHECK, format!("{now:.0} °C, and pressure.temperature_c sets no limit")),
    }]
}
