use limpet_wire::depot::{Described, Rollout, index_name};
use proptest::prelude::*;

use super::*;
use crate::trust::{TargetInfo, Versions};

fn release() -> Release {
    Release {
        channels: vec!["stable".into()],
        percent: 100.0,
        salt: "a".into(),
        labels: BTreeMap::new(),
        not_before: None,
        not_after: None,
        halted: false,
        withdrawn: false,
    }
}

fn trusted(releases: &[(&str, Release)]) -> Trusted {
    let target = |(version, _): &(&str, Release)| {
        let described = Described { model: Some("m".into()), version: Some((*version).into()), bytes: None };
        (index_name("m", version), TargetInfo { sha256: [0; 32], length: 1, described })
    };
    let models = releases.iter().map(|(version, release)| ((*version).to_owned(), release.clone())).collect();
    Trusted {
        versions: Versions { root: 1, timestamp: 1, snapshot: 1, targets: 1, rollout: 1 },
        expires: now(),
        issued: None,
        targets: releases.iter().map(target).collect(),
        rollout: Rollout { models: [("m".to_owned(), models)].into() },
        chunks: None,
    }
}

fn now() -> Timestamp {
    "2026-11-25T00:00:00Z".parse().unwrap()
}

fn gateway() -> Gateway {
    Gateway { id: "press-07".into(), labels: [("line".into(), "3".into())].into(), channel: "stable".into() }
}

fn chosen(releases: &[(&str, Release)], active: Option<&str>) -> Choice {
    choose(&trusted(releases), &gateway(), "m", &"^1".parse().unwrap(), active, &|_| false, now())
}

#[test]
fn the_highest_version_in_the_range_is_taken_and_never_a_lower_one() {
    let all = [("1.0.0", release()), ("1.10.0", release()), ("1.9.0", release()), ("2.0.0", release())];
    assert_eq!(chosen(&all, None), Choice::Take("1.10.0".into()));
    assert_eq!(chosen(&all, Some("1.9.0")), Choice::Take("1.10.0".into()));
    assert!(matches!(chosen(&all, Some("1.10.0")), Choice::Stay(_)));
    assert!(matches!(chosen(&all, Some("1.11.0")), Choice::Stay(_)));
    assert_eq!(chosen(&all, Some("2.0.0")), Choice::Take("1.10.0".into()));
}

#[test]
fn what_serves_stays_when_it_is_halted_unlisted_or_for_others_now() {
    let halted = Release { halted: true, ..release() };
    let others = Release { labels: [("line".into(), "4".into())].into(), ..release() };
    let nobody = Release { percent: 0.0, ..release() };
    for changed in [halted, others, nobody] {
        let releases = [("1.0.0", release()), ("1.1.0", changed)];
        assert!(matches!(chosen(&releases, Some("1.1.0")), Choice::Stay(_)));
        assert_eq!(chosen(&releases, None), Choice::Take("1.0.0".into()));
    }
    assert!(matches!(chosen(&[], Some("1.1.0")), Choice::Stay(_)));
}

#[test]
fn what_was_withdrawn_gives_way_to_what_is_offered_or_permitted() {
    let withdrawn = Release { withdrawn: true, ..release() };
    let both = [("1.0.0", release()), ("1.1.0", withdrawn.clone())];
    assert_eq!(chosen(&both, Some("1.1.0")), Choice::Take("1.0.0".into()));
    let halted = [("1.0.0", Release { halted: true, ..release() }), ("1.1.0", withdrawn.clone())];
    assert_eq!(chosen(&halted, Some("1.1.0")), Choice::Withdrawn { withdrawn: vec!["1.1.0".into()] });
    assert_eq!(chosen(&[("1.1.0", withdrawn)], Some("1.1.0")), Choice::Withdrawn { withdrawn: vec!["1.1.0".into()] });
}

#[test]
fn a_release_is_valid_from_and_until_and_a_time_that_is_none_is_refused() {
    let with = |from: Option<&str>, until: Option<&str>| {
        let (not_before, not_after) = (from.map(str::to_owned), until.map(str::to_owned));
        chosen(&[("1.0.0", Release { not_before, not_after, ..release() })], None)
    };
    let taken = Choice::Take("1.0.0".into());
    assert_eq!(with(Some("2026-11-24T00:00:00Z"), Some("2026-11-26T00:00:00Z")), taken);
    for (from, until) in
        [(Some("2026-11-26T00:00:00Z"), None), (None, Some("2026-11-24T00:00:00Z")), (Some("soon"), None)]
    {
        assert!(matches!(with(from, until), Choice::Stay(_)), "{from:?} {until:?}");
    }
}

#[test]
fn what_was_rejected_leaves_its_place_to_the_next() {
    let releases = trusted(&[("1.0.0", release()), ("1.1.0", release())]);
    let choice = choose(&releases, &gateway(), "m", &VersionReq::STAR, None, &|v| v == "1.1.0", now());
    assert_eq!(choice, Choice::Take("1.0.0".into()));
}

#[test]
fn a_configuration_is_for_a_gateway_or_for_one_of_its_labels() {
    let with = |names: &[&str]| {
        let mut trusted = trusted(&[]);
        for name in names {
            let info = TargetInfo { sha256: [0; 32], length: 1, described: Described::default() };
            trusted.targets.insert((*name).to_owned(), info);
        }
        let gateway =
            Gateway { labels: [("line".into(), "3".into()), ("site".into(), "lyon".into())].into(), ..gateway() };
        configuration(&trusted, &gateway).map(|name| name.map(str::to_owned))
    };
    assert_eq!(with(&["config.press-08", "config.line=4"]), Ok(None));
    assert_eq!(with(&["config.line=3"]), Ok(Some("config.line=3".into())));
    assert_eq!(with(&["config.line=3", "config.press-07"]), Ok(Some("config.press-07".into())));
    assert!(with(&["config.line=3", "config.site=lyon"]).unwrap_err().contains("config.line=3 and config.site=lyon"));
}

#[test]
fn a_tenth_of_the_gateways_is_about_a_tenth() {
    let drawn = (0..10_000).filter(|number| eligible(&format!("gw-{number}"), "salt", 10.0)).count();
    assert!((900..1100).contains(&drawn), "{drawn}");
}

proptest! {
    #[test]
    fn whoever_is_in_stays_in_while_the_share_grows(id in "[a-z0-9-]{1,20}", salt in "[a-f0-9]{8}", one in 0.0..=100.0f64, two in 0.0..=100.0f64) {
        let (low, high) = (one.min(two), one.max(two));
        prop_assert!(!eligible(&id, &salt, low) || eligible(&id, &salt, high));
        prop_assert!(!eligible(&id, &salt, 0.0) && eligible(&id, &salt, 100.0));
    }

    #[test]
    fn nothing_is_taken_that_is_not_offered(
        flags in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 0.0..=100.0f64), 1..6),
        active in prop::option::of(0u64..8),
    ) {
        let releases: Vec<(String, Release)> = flags.iter().enumerate().map(|(minor, (halted, withdrawn, other, percent))| {
            let channels = vec![if *other { "beta".to_owned() } else { "stable".to_owned() }];
            (format!("1.{minor}.0"), Release { halted: *halted, withdrawn: *withdrawn, percent: *percent, channels, ..release() })
        }).collect();
        let listed: Vec<(&str, Release)> = releases.iter().map(|(version, release)| (version.as_str(), release.clone())).collect();
        let active = active.map(|minor| format!("1.{minor}.0"));
        if let Choice::Take(version) = chosen(&listed, active.as_deref()) {
            let release = &releases.iter().find(|(other, _)| *other == version).unwrap().1;
            prop_assert!(!release.halted && !release.withdrawn && release.channels == ["stable"]);
            prop_assert!(eligible("press-07", &release.salt, release.percent));
            prop_assert!(active.as_deref() != Some(version.as_str()));
        }
    }
}
