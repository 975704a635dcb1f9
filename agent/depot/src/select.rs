//! Which version of a model a gateway runs, by what its publisher signed.
//!
//! A version is *offered* to a gateway if it is listed in the targets, its release in the rollout is on the gateway's
//! channel, asks for no label that the gateway lacks, is valid now, neither halted nor withdrawn, and its share of the
//! gateways includes this one; if it lies in the range that pipelines ask for, and was not rejected here.
//!
//! | what serves | then |
//! |---|---|
//! | nothing | the highest version offered |
//! | a version in the range, not withdrawn | a higher one, if one is offered; never a lower one |
//! | a version that is halted, or no longer offered, or no longer listed at all | the same: nothing is concluded from absence |
//! | a version out of the range | the highest version offered, even a lower one |
//! | a withdrawn version | the highest version offered, even a lower one; else one that ran here before and was not withdrawn |

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use limpet_wire::depot::Release;
use semver::{Version, VersionReq};
use sha2::{Digest as _, Sha256};

use crate::trust::Trusted;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Its name.
    pub id: String,
    /// Groups that it belongs to.
    pub labels: BTreeMap<String, String>,
    /// The channel that it follows.
    pub channel: String,
}

/// What there is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Nothing: why.
    Stay(String),
    /// This version is to be fetched and taken up.
    Take(String),
    /// What serves was withdrawn, and nothing is offered in its place.
    Withdrawn {
        /// All versions that were: none of them may take over.
        withdrawn: Vec<String>,
    },
}

/// Whether a gateway belongs to the share that gets a version.
///
/// The first 64 bits of SHA-256(gateway ‖ 0 ‖ salt), as a fraction of 1, against the share: so the same gateways stay in
/// while the share grows, and another salt draws others.
pub fn eligible(gateway: &str, salt: &str, percent: f64) -> bool {
    let digest = Sha256::new().chain_update(gateway).chain_update([0]).chain_update(salt).finalize();
    let place = u64::from_be_bytes(digest[..8].try_into().expect("a SHA-256 has 32 bytes"));
    // Exact at the ends: all at 100, nobody at 0.
    percent >= 100.0 || (place as f64 / 2f64.powi(64)) < percent / 100.0
}

/// Whether a version lies in a range; text that is no version lies in none.
pub fn in_range(range: &VersionReq, version: &str) -> bool {
    Version::parse(version).is_ok_and(|version| range.matches(&version))
}

/// Chooses a version. `active` is what serves; `time` the one to judge validity by.
pub fn choose(
    trusted: &Trusted,
    gateway: &Gateway,
    model: &str,
    range: &VersionReq,
    active: Option<&str>,
    rejected: &dyn Fn(&str) -> bool,
    time: Timestamp,
) -> Choice {
    let releases = trusted.rollout.models.get(model);
    let release = |version: &Version| releases.and_then(|releases| releases.get(&version.to_string()));
    let listed = trusted.targets.values().filter(|target| target.described.model.as_deref() == Some(model));
    let mut versions: Vec<Version> =
        listed.filter_map(|target| Version::parse(target.described.version.as_deref()?).ok()).collect();
    versions.sort_unstable();
    let mut refused = Vec::new();
    let offered = versions.iter().rev().find(|version| {
        let text = version.to_string();
        let why = match release(version) {
            None => Err("its release is not in the rollout".to_owned()),
            Some(_) if !range.matches(version) => Err(format!("it is not in the range {range}")),
            Some(_) if rejected(&text) => Err("it was rejected here".to_owned()),
            Some(release) => offers(release, gateway, time),
        };
        why.map_err(|why| refused.push(format!("{text}: {why}"))).is_ok()
    });
    let active = active.and_then(|active| Version::parse(active).ok());
    let withdrawn = active.as_ref().and_then(release).is_some_and(|release| release.withdrawn);
    let why = || match refused.is_empty() {
        true => "no version of it is listed".to_owned(),
        false => format!("no newer version is offered ({})", refused.join("; ")),
    };
    match (active, offered) {
        (Some(active), Some(offered)) if withdrawn || !range.matches(&active) || *offered > active => {
            Choice::Take(offered.to_string())
        }
        (Some(active), Some(_)) => Choice::Stay(format!("{active} is the newest version offered")),
        (Some(_), None) if withdrawn => Choice::Withdrawn { withdrawn: self::withdrawn(trusted, model) },
        (None, Some(offered)) => Choice::Take(offered.to_string()),
        (_, None) => Choice::Stay(why()),
    }
}

/// All versions of a model in a range that are offered to a gateway, whatever serves there.
pub fn offered(
    trusted: &Trusted,
    gateway: &Gateway,
    model: &str,
    range: &VersionReq,
    time: Timestamp,
) -> BTreeSet<String> {
    let releases = trusted.rollout.models.get(model).into_iter().flatten();
    let offered =
        releases.filter(|(version, release)| in_range(range, version) && offers(release, gateway, time).is_ok());
    offered.map(|(version, _)| version.clone()).collect()
}

/// The versions of a model that were withdrawn.
pub fn withdrawn(trusted: &Trusted, model: &str) -> Vec<String> {
    let releases = trusted.rollout.models.get(model).into_iter().flatten();
    releases.filter(|(_, release)| release.withdrawn).map(|(version, _)| version.clone()).collect()
}

/// Whether a release is for this gateway, now; or why not.
fn offers(release: &Release, gateway: &Gateway, time: Timestamp) -> Result<(), String> {
    let lacks = |(label, value): &(&String, &String)| gateway.labels.get(*label) != Some(*value);
    let at = |key: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => text.parse::<Timestamp>().map(Some).map_err(|error| format!("its {key} is no time: {error}")),
    };
    if release.withdrawn {
        return Err("it was withdrawn".into());
    }
    if release.halted {
        return Err("its rollout is halted".into());
    }
    if !release.channels.contains(&gateway.channel) {
        return Err(format!("it is on {:?}, and this gateway follows \"{}\"", release.channels, gateway.channel));
    }
    if let Some((label, value)) = release.labels.iter().find(lacks) {
        return Err(format!("it is for gateways with {label}={value}"));
    }
    if let Some(from) = at("not_before", &release.not_before)?.filter(|from| time < *from) {
        return Err(format!("it is not offered before {from}"));
    }
    if let Some(until) = at("not_after", &release.not_after)?.filter(|until| time > *until) {
        return Err(format!("it was offered until {until}"));
    }
    if !eligible(&gateway.id, &release.salt, release.percent) {
        return Err(format!("it goes to {} % of the gateways so far, and this is none of them", release.percent));
    }
    Ok(())
}

/// The signed configuration for a gateway, as the name of a target: `config.<gateway>`, else that of its one label that
/// has one.
///
/// # Errors
/// If several of its labels have one.
pub fn configuration<'a>(trusted: &'a Trusted, gateway: &Gateway) -> Result<Option<&'a str>, String> {
    let own = format!("config.{}", gateway.id);
    let target = |name: &str| trusted.targets.get_key_value(name).map(|(name, _)| name.as_str());
    if let Some(found) = target(&own) {
        return Ok(Some(found));
    }
    let labels = gateway.labels.iter();
    let found: Vec<&str> = labels.filter_map(|(label, value)| target(&format!("config.{label}={value}"))).collect();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        several => Err(format!(
            "{} are signed for labels of this gateway; sign one for {own}, which comes before them, or give it one of these labels only",
            several.join(" and ")
        )),
    }
}

#[cfg(test)]
mod tests;
