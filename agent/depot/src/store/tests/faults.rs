//! Every write, sync, rename and removal fails once, and the process ends at every one of them.

use super::*;
use crate::replace::fault::{Fault, with};
use crate::trial::ConfigurationTrial;

const FAULTS: [Fault; 2] = [Fault::Fails, Fault::Ends];

/// A store on which 1.0.0 serves.
fn serving() -> (Home, Index) {
    let home = home();
    let old = example("1.0.0", 1);
    home.put(&old);
    home.activate(&old);
    (home, old.0)
}

/// What a process that starts anew finds, after the one before has ended at a step.
fn next_process(home: Home, fault: Fault) -> Home {
    if fault == Fault::Fails {
        return home;
    }
    let Home { state, store } = home;
    drop(store);
    let store = Store::open(state.path()).unwrap();
    let home = Home { state, store };
    assert!(home.files().iter().all(|path| !files::name(path).starts_with(".part-")), "half-written files go");
    home
}

/// Replaces what is kept twice, with a fault at every step: after an error the old one stands, after none the new one.
fn replace_at_every_step<K: Kept + std::fmt::Debug>(
    home: impl Fn() -> Home,
    paths: impl Fn(&Store) -> [PathBuf; 2],
    read: impl Fn(&Store) -> Result<K, DepotError>,
    replace: impl Fn(&Store) -> Result<K, DepotError>,
) {
    for fault in FAULTS {
        let (mut steps, mut refused) = (0, 0);
        loop {
            let home = home();
            let before = read(&home.store).unwrap();
            let (done, hit) = with(steps, fault, || replace(&home.store));
            let notices = home.store.notices();
            let [main, copy] = paths(&home.store);
            let home = next_process(home, fault);
            let found = read(&home.store).unwrap();
            match &done {
                Err(error) => {
                    assert!(hit && found == before, "{fault:?} at {steps}: {found:?} after: {error}");
                    assert_eq!(notices, [""; 0], "{fault:?} at {steps}");
                    refused += 1;
                }
                Ok(after) => {
                    assert!(found == *after && found != before, "{fault:?} at {steps}: {found:?}");
                    assert_eq!(!notices.is_empty(), hit, "{fault:?} at {steps}: {notices:?}");
                    let named =
                        |notice: &String| [&main, &copy].iter().any(|path| notice.contains(path.to_str().unwrap()));
                    assert!(notices.iter().all(named), "{notices:?}");
                }
            }
            // Whoever read it made both agree again.
            assert!(fs::read(&main).unwrap() == fs::read(&copy).unwrap(), "{fault:?} at {steps}");
            flip(&main, 100);
            assert_eq!(read(&home.store).unwrap(), found, "{fault:?} at {steps}");
            // The same change again completes it.
            let after = replace(&home.store).unwrap();
            assert_eq!(read(&home.store).unwrap(), after);
            if !hit {
                break;
            }
            steps += 1;
        }
        // Two files, each made, written in two halves, synced, renamed, and its folder synced. Only what fails before the
        // first has its name is refused.
        assert_eq!((steps, refused), (12, 5), "{fault:?}");
    }
}

#[test]
fn a_fault_at_any_step_of_replacing_a_record_is_an_error_with_the_old_one_or_a_notice_with_the_new_one() {
    let set = |store: &Store| {
        let mut after = store.record("m").unwrap();
        after.activate(Installed { version: "2.0.0".into(), package: Hex(&[7; 32]).to_string() }, 1);
        store.set_record("m", &after).map(|()| after)
    };
    replace_at_every_step(|| serving().0, |store| store.record_paths("m").unwrap(), |store| store.record("m"), set);
}

/// A store on which a signed configuration is in effect.
fn configured() -> Home {
    let home = home();
    home.store.update_configured(|configured| configured.activate(Some(one("[budget]\n")), None)).unwrap();
    home
}

fn one(text: &str) -> Configuration {
    Configuration { target: "config.press-07".into(), text: text.into() }
}

#[test]
fn a_fault_at_any_step_of_activating_a_configuration_is_an_error_with_the_old_one_or_a_notice_with_the_new_one() {
    let activate = |configured: &mut Configured| {
        configured.activate(Some(one("[budget]\ncpu = 1\n")), Some(ConfigurationTrial::default()));
    };
    let update = |store: &Store| store.update_configured(activate);
    replace_at_every_step(configured, Store::configured_paths, Store::configured, update);
}

#[test]
fn a_copy_that_was_left_behind_is_told_of_once_and_written_by_the_next_change_too() {
    let home = configured();
    let [main, copy] = home.store.configured_paths();
    let set =
        |text: &'static str| home.store.update_configured(move |configured| configured.activate(Some(one(text)), None));
    for text in ["[budget]\ncpu = 1\n", "[budget]\ncpu = 2\n"] {
        // From the seventh step on, nothing goes any more.
        let (done, hit) = with(6, Fault::Ends, || (set(text), home.store.configured()));
        assert!(hit);
        assert_eq!(done.0.unwrap(), done.1.unwrap());
        let notices = home.store.notices();
        assert!(matches!(&notices[..], [one] if one.contains(copy.to_str().unwrap())), "{notices:?}");
        let agree = || fs::read(&main).unwrap() == fs::read(&copy).unwrap();
        assert!(!agree());
        home.store.update_configured(|_| {}).unwrap();
        assert!(agree());
        assert_eq!(home.store.notices(), [""; 0]);
    }
}

#[test]
fn a_fault_at_any_step_of_putting_a_damaged_record_right_keeps_nobody_from_reading_its_copy() {
    for fault in FAULTS {
        for at in 0.. {
            let (home, _) = serving();
            let before = home.store.record("m").unwrap();
            let [main, _] = home.store.record_paths("m").unwrap();
            flip(&main, 100);
            let (read, hit) = with(at, fault, || home.store.record("m"));
            assert_eq!(read.unwrap(), before, "{fault:?} at {at}");
            assert!(matches!(&home.store.notices()[..], [one] if one.contains("m.json")), "{fault:?} at {at}");
            let home = next_process(home, fault);
            assert_eq!(home.store.record("m").unwrap(), before, "{fault:?} at {at}");
            if !hit {
                assert_eq!(at, 6);
                break;
            }
        }
    }
}

#[test]
fn a_fault_at_any_step_of_putting_a_record_aside_that_is_lost_twice_is_completed_by_the_next() {
    for fault in FAULTS {
        for at in 0.. {
            let home = configured();
            let paths = home.store.configured_paths();
            paths.iter().for_each(|path| flip(path, 100));
            let (read, hit) = with(at, fault, || home.store.configured());
            assert_eq!(read.is_ok(), !hit, "{fault:?} at {at}");
            let home = next_process(home, fault);
            assert_eq!(home.store.configured().unwrap(), Configured::default(), "{fault:?} at {at}");
            assert!(paths.iter().all(|path| !path.exists()));
            let aside = |name: &str| home.store.folder().join(name).exists();
            assert!(aside("configuration.json.damaged") && aside("configuration.copy.damaged"));
            if !hit {
                assert_eq!(at, 2);
                break;
            }
        }
    }
}

#[test]
fn a_fault_at_any_step_of_a_delivery_leaves_a_version_that_serves_and_the_delivery_goes_on_where_it_was() {
    let new = example("2.0.0", 2);
    for fault in FAULTS {
        for at in 0.. {
            let (home, old) = serving();
            let deliver = |store: &Store| -> Result<(), DepotError> {
                store.put_index(&new.0)?;
                new.1.iter().try_for_each(|cut| store.put(&cut.reference, &cut.stored))?;
                store.update_record("m", |record| record.activate(installed(&new.0), 1)).map(|_| ())
            };
            let (done, hit) = with(at, fault, || deliver(&home.store));
            assert_eq!(done.is_ok() && home.store.notices().is_empty(), !hit, "{fault:?} at {at}: a fault is told of");
            let home = next_process(home, fault);
            let active = home.store.record("m").unwrap().active.unwrap();
            let expected = installed(if done.is_ok() { &new.0 } else { &old });
            assert_eq!(active, expected, "{fault:?} at {at}: {done:?}");
            let index = home.store.index("m", &active.version).unwrap().unwrap();
            assert_eq!(Hex(&home.store.package(&index).unwrap().digest().0).to_string(), active.package);
            // What was kept is whole, and is not written again.
            let there = new.1.iter().filter(|cut| home.store.has(&cut.reference.stored));
            there.for_each(|cut| _ = home.store.chunk(&cut.reference).unwrap());
            let missing = Store::cost(&home.store.missing(&new.0));
            let written = home.store.bytes_written();
            deliver(&home.store).unwrap();
            let index_and_records = 4 * files::on_disk(new.0.to_bytes().len() as u64 + 4096);
            assert!(home.store.bytes_written() - written <= missing + index_and_records, "{fault:?} at {at}");
            assert_eq!(home.store.record("m").unwrap().active, Some(installed(&new.0)));
            home.store.package(&new.0).unwrap();
            if !hit {
                assert!(at > 6 * new.1.len(), "{at} steps");
                break;
            }
        }
    }
}

#[test]
fn a_fault_at_any_step_of_a_collection_takes_nothing_that_serves_and_the_next_takes_the_rest() {
    for fault in FAULTS {
        for at in 0.. {
            let (home, old) = serving();
            let nobodys = example("3.0.0", 3);
            home.put(&nobodys);
            let (done, hit) = with(at, fault, || home.store.collect(&[]).map(|_| ()));
            assert_eq!(done.is_ok(), !hit, "{fault:?} at {at}");
            let home = next_process(home, fault);
            home.store.package(&old).unwrap();
            home.store.collect(&[]).unwrap();
            home.store.package(&old).unwrap();
            assert!(nobodys.1.iter().all(|cut| !home.store.has(&cut.reference.stored) || named(&old, cut)));
            assert_eq!(home.store.index("m", "3.0.0").unwrap(), None);
            if !hit {
                assert!(at >= nobodys.1.len(), "{at} steps");
                break;
            }
        }
    }
}

fn named(index: &Index, cut: &Cut) -> bool {
    index.chunks.iter().any(|chunk| chunk.stored == cut.reference.stored)
}
