//! Every write, sync, rename and removal fails once, and the process ends at every one of them.

use super::*;
use crate::replace::fault::{Fault, with};

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

#[test]
fn a_fault_at_any_step_of_replacing_a_record_leaves_the_old_or_the_new_one() {
    for fault in FAULTS {
        let mut steps = 0;
        loop {
            let (home, old) = serving();
            let before = home.store.record("m").unwrap();
            let mut after = before.clone();
            after.activate(Installed { version: "2.0.0".into(), package: Hex(&[7; 32]).to_string() }, 1);
            let (done, hit) = with(steps, fault, || home.store.set_record("m", &after));
            let home = next_process(home, fault);
            let found = home.store.record("m").unwrap();
            assert!(found == before || found == after, "{fault:?} at {steps}: {found:?}");
            assert_eq!(done.is_ok(), !hit, "{fault:?} at {steps}: a fault is told of");
            assert!(hit || found == after);
            // And whichever it is, the copy stands in for it.
            let [main, _] = home.store.record_paths("m").unwrap();
            flip(&main, 100);
            let copied = home.store.record("m").unwrap();
            assert!(copied == before || copied == after, "{fault:?} at {steps}: {copied:?}");
            // The same change again completes it.
            home.store.set_record("m", &after).unwrap();
            assert_eq!(home.store.record("m").unwrap(), after);
            home.store.package(&old).unwrap();
            if !hit {
                break;
            }
            steps += 1;
        }
        // Two files, each made, written in two halves, synced, renamed, and its folder synced.
        assert_eq!(steps, 12, "{fault:?}");
    }
}

#[test]
fn a_fault_at_any_step_of_putting_a_damaged_record_right_leaves_its_copy() {
    for fault in FAULTS {
        for at in 0.. {
            let (home, _) = serving();
            let before = home.store.record("m").unwrap();
            let [main, _] = home.store.record_paths("m").unwrap();
            flip(&main, 100);
            let (_, hit) = with(at, fault, || home.store.record("m"));
            let home = next_process(home, fault);
            assert_eq!(home.store.record("m").unwrap(), before, "{fault:?} at {at}");
            if !hit {
                assert!(at >= 6, "{at}");
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
            assert_eq!(done.is_ok(), !hit, "{fault:?} at {at}");
            let home = next_process(home, fault);
            let active = home.store.record("m").unwrap().active.unwrap();
            assert!([installed(&old), installed(&new.0)].contains(&active), "{fault:?} at {at}: {active:?}");
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
