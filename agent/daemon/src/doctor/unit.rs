//! Whether the agent runs as its unit has it: supervised, and shut in.

use super::{Finding, Patient};

const CHECK: &str = "unit";

pub fn check(patient: &Patient<'_>) -> Vec<Finding> {
    if patient.status.is_none() {
        // Only the agent sees its own sandbox.
        return Vec::new();
    }
    if std::env::var_os("INVOCATION_ID").is_none() {
        return vec![Finding::warning(
            CHECK,
            "the agent was not started by systemd: nobody starts it again, and nothing shuts it in",
            "install systemd/limpet.service, then systemctl enable --now limpet",
        )];
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim).to_owned();
    let read_only =
        rustix::fs::statvfs("/usr").is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    let missing: Vec<&str> = [
        (field("NoNewPrivs:") == "1", "NoNewPrivileges=yes"),
        (field("Seccomp:") == "2", "SystemCallFilter="),
        (read_only, "ProtectSystem=strict"),
        (!rustix::process::geteuid().is_root(), "User=limpet"),
    ]
    .into_iter()
    .filter_map(|(holds, setting)| (!holds).then_some(setting))
    .collect();
    vec![if missing.is_empty() {
        Finding::ok(
            CHECK,
            "started by systemd, without new privileges, with a system call filter, on a read-only system",
        )
    } else {
        Finding::warning(
            CHECK,
            format!("started by systemd, without {}", missing.join(", ")),
            "use systemd/limpet.service as it comes, and put your own settings into a drop-in",
        )
    }]
}
