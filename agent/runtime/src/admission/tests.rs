use super::*;

fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

fn task(name: &str, worst: u64, period: u64, deadline: u64) -> Task {
    Task {
        name: name.into(),
        class: Class::Realtime,
        mean: micros(worst),
        worst: micros(worst),
        period: micros(period),
        deadline: micros(deadline),
        jitter: Duration::ZERO,
        batches: Vec::new(),
    }
}

fn analytic(name: &str, worst: u64, period: u64) -> Task {
    Task { class: Class::Analytic, ..task(name, worst, period, 10_000_000) }
}

fn demand(source: &str, streams: u32, tasks: &[Task]) -> Demand {
    Demand { source: source.into(), streams, tasks: tasks.to_vec() }
}

const ONE: Budget = Budget { cpu: 1.0, workers: 1 };

#[test]
fn the_load_is_the_sum_of_means_over_periods() {
    let demands =
        [demand("a", 4, &[task("a: infer", 100, 1000, 1000)]), demand("b", 1, &[analytic("b: infer", 300, 1000)])];
    let admitted = admit(ONE, &demands).unwrap();
    assert!((admitted.load - 0.7).abs() < 1e-9);
    let refusal = admit(Budget { cpu: 0.6, workers: 1 }, &demands).unwrap_err();
    let text = refusal.to_string();
    assert!(text.starts_with("Σ mean C ÷ T = 0.700 cores is above budget.cpu = 0.6: "), "{text}");
    assert!(text.contains("a: infer 4 × 100 µs ÷ 1 ms = 0.400 + b: infer 1 × 300 µs ÷ 1 ms = 0.300"), "{text}");
}

#[test]
fn a_deadline_below_the_cost_is_refused_with_both() {
    let short = Task { jitter: micros(5000), ..task("a: infer", 240, 1000, 100) };
    let text = admit(ONE, &[demand("a", 1, &[short])]).unwrap_err().to_string();
    let start = "a: infer takes 240 µs on this device (p99), and of the deadline of 5.10 ms only 100 µs are left after a jitter of 5 ms";
    assert!(text.starts_with(start), "{text}");
}

#[test]
fn a_long_job_that_is_running_may_be_what_does_not_fit() {
    // 2 of 10 and 6 of 100: far from full, but whoever is due after 7 may find the long one running.
    let short = demand("short", 1, &[task("short: infer", 2000, 10_000, 7000)]);
    let long = |cost| demand("long", 1, &[task("long: infer", cost, 100_000, 100_000)]);
    assert!(admit(ONE, &[short.clone(), long(5000)]).is_ok());
    let refusal = admit(ONE, &[short.clone(), long(5001)]).unwrap_err();
    let Refusal::Full { source, placed: 0, streams: 1, workers } = &refusal else { panic!("{refusal:?}") };
    // The source that is placed last is the one that finds no place.
    assert_eq!(source, "long");
    let tightest = Tightest { at: micros(7000), due: micros(2000), blocked: micros(5001) };
    assert_eq!(workers[..], [Obstacle::Deadline(tightest)]);
    assert!(refusal.to_string().contains("t = 7 ms: 2 ms due + 5.00 ms of a job that is running > 7 ms"), "{refusal}");
    // On a worker of its own it fits.
    let admitted = admit(Budget { cpu: 2.0, workers: 2 }, &[short, long(5001)]).unwrap();
    assert_eq!(admitted.workers[0].streams, [1, 0]);
    assert_eq!(admitted.workers[1].streams, [0, 1]);
}

#[test]
fn analytic_jobs_block_and_the_longest_that_may_is_told() {
    let realtime = demand("r", 2, &[task("r: infer", 1000, 10_000, 8000)]);
    let admitted = admit(ONE, std::slice::from_ref(&realtime)).unwrap();
    assert_eq!(admitted.workers[0].longest_job, Some(micros(6000)));
    let with = |cost| admit(ONE, &[realtime.clone(), demand("a", 1, &[analytic("a: infer", cost, 1_000_000)])]);
    assert!(with(6000).is_ok());
    assert!(with(6001).is_err());
    let alone = admit(ONE, &[demand("a", 1, &[analytic("a: infer", 6001, 1_000_000)])]).unwrap();
    assert_eq!((alone.workers[0].longest_job, alone.workers[0].tightest), (None, None));
}

#[test]
fn streams_are_placed_first_fit_as_many_as_fit() {
    let demands = [demand("a", 5, &[task("a: infer", 300, 1000, 1000)])];
    let admitted = admit(Budget { cpu: 2.0, workers: 2 }, &demands).unwrap();
    let placed: Vec<_> = admitted.workers.iter().map(|worker| worker.streams[0]).collect();
    assert_eq!(placed, [3, 2]);
    let refusal = admit(Budget { cpu: 3.0, workers: 2 }, &[demand("a", 7, &demands[0].tasks)]).unwrap_err();
    let Refusal::Full { placed: 6, streams: 7, workers, .. } = &refusal else { panic!("{refusal:?}") };
    assert!(matches!(workers[..], [Obstacle::Density(one), Obstacle::Density(two)] if one > 1.0 && two > 1.0));
}

#[test]
fn what_fills_a_worker_to_the_brim_ends() {
    let full = demand("a", 1, &[task("a: infer", 500, 1000, 1000), task("b: infer", 499, 1000, 1000)]);
    assert!(admit(ONE, &[full]).is_ok());
    // At a density of 1 with a blocking job the busy period never ends.
    let refusal =
        admit(ONE, &[demand("a", 1, &[task("a: infer", 500, 1000, 500_000), task("b: infer", 500, 1000, 500_000)])]);
    assert!(refusal.is_ok() || matches!(refusal, Err(Refusal::Full { .. })), "it comes to an end: {refusal:?}");
}

#[test]
fn memory_adds_up_or_is_refused_with_the_terms() {
    let terms = [("motor 1.0.0".to_owned(), 3 << 20), ("wake 2.1.0".to_owned(), 2 << 20)];
    assert_eq!(fit_memory(5 << 20, &terms), Ok(5 << 20));
    let text = fit_memory(4 << 20, &terms).unwrap_err().to_string();
    let start = "Σ measured = 5.0 MiB is above budget.memory = 4.0 MiB: motor 1.0.0 3.0 MiB + wake 2.1.0 2.0 MiB";
    assert!(text.starts_with(start), "{text}");
}

/// Quadratic in the sources at most: what is tested for each is all that is there already.
#[test]
fn a_thousand_sources_are_admitted_and_find_their_places() {
    let demands: Vec<_> = (0..1000)
        .map(|index| {
            let period = 1_000_000 + index * 1000;
            demand(&format!("s{index}"), 16, &[task("ingest", 5, period, period), task("infer", 30, period, period)])
        })
        .collect();
    let admitted = admit(Budget { cpu: 2.0, workers: 2 }, &demands).unwrap();
    assert_eq!(admitted.workers.iter().flat_map(|worker| &worker.streams).sum::<u32>(), 16_000);
}

#[test]
fn times_are_shown_with_three_digits() {
    let shown = |nanos| Shown(Duration::from_nanos(nanos)).to_string();
    assert_eq!([shown(999), shown(1000), shown(12_340), shown(123_400)], ["999 ns", "1 µs", "12.3 µs", "123 µs"]);
    assert_eq!([shown(20_000_000), shown(1_234_000_000)], ["20 ms", "1.23 s"]);
}

#[test]
fn what_has_its_place_is_not_moved() {
    let budget = Budget { cpu: 2.0, workers: 2 };
    let first = demand("first", 2, &[task("first: infer", 300, 1000, 1000)]);
    let second = demand("second", 1, &[task("second: infer", 800, 1000, 1000)]);
    let placed = |streams: [u32; 2]| [Some(streams.to_vec()), None];
    let demands = [first, second];
    let admitted = admit_beside(budget, &demands, &placed([0, 2])).unwrap();
    assert_eq!((&admitted.workers[0].streams[..], &admitted.workers[1].streams[..]), (&[0, 1][..], &[2, 0][..]));
    let refusal = admit_beside(budget, &demands, &placed([1, 1])).unwrap_err();
    assert!(matches!(refusal, Refusal::Full { placed: 0, streams: 1, .. }), "{refusal}");
    let refusal = admit_beside(budget, &[demand("first", 4, &demands[0].tasks)], &[Some(vec![4, 0])]).unwrap_err();
    assert!(matches!(refusal, Refusal::Worker { worker: 0, obstacle: Obstacle::Density(_) }), "{refusal}");
}
