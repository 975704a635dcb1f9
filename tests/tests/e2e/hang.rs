//! A session that does not come back: the process ends for it, and a version that does so twice runs no more.

use std::time::{Duration, Instant};

use limpet_tests::agent::Home;
use limpet_tests::{Agent, Broker, Client, LIMIT, Message, Package};
use serde_json::Value;

use crate::{assert_says, event, feed, levels, local, named, uplink};

/// How long the process may take to end, once it was noticed.
const ENDS: Duration = Duration::from_secs(5);

/// Sends windows until a session hangs for one of them; gives the event.
#[track_caller]
pub fn hang(client: &mut Client) -> Value {
    let topic = uplink("event");
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        client.publish("plant/a/slow", "[0.1, 0.2, 0.9]");
        let hung = |m: &Message| m.topic == topic && m.json()["kind"] == "session-hung";
        if let Some(message) = client.try_wait_for(Duration::from_millis(300), hung) {
            return message.json();
        }
    }
    panic!("no session hung");
}

#[test]
fn a_session_that_hangs_ends_the_process_and_twice_is_once_too_often() {
    let (slow, scores) = (Package::slow(), Package::scores());
    let mut home = Home::proved_with("slow", &[(&slow, "")]);
    let broker = Broker::start();
    let mut client = Client::connect(&broker);
    client.subscribe(&["limpet/1/#"]);
    // Its runs take some hundred milliseconds.
    let config = format!(
        "[runtime]\nhang_limit = \"100ms\"\n{}{}{}",
        local(&broker),
        levels(&scores, "", ""),
        feed("slow", &slow, "max_streams = 1", "")
    );
    for times in 1..=2 {
        let agent = Agent::start_in(home, &config);
        agent.wait_for_log(&["serving", "model=\"slow\""]);
        let told = hang(&mut client);
        let noticed = Instant::now();
        assert_eq!((&told["model"], &told["pipeline"]), (&"slow".into(), &"slow".into()));
        assert_says(&told["message"], &["model slow has been running for ", "runtime.hang_limit"]);
        let (status, left, _) = agent.wait_for_end();
        assert_eq!(status.code(), Some(70), "time {times}");
        assert!(noticed.elapsed() < ENDS, "{:?}", noticed.elapsed());
        home = left;
    }
    let mut agent = Agent::start_in(home, &config);
    for _ in 0..2 {
        // The first is that of the second start.
        let told = event(&mut client, "crashed");
        assert_says(&told["message"], &["hang"]);
    }
    let refused = event(&mut client, "model-refused");
    assert_eq!((&refused["model"], &refused["pipeline"]), (&"slow".into(), &"slow".into()));
    assert_says(&refused["message"], &["ended the agent 2 times", "hang"]);
    let result = client.knock("plant/a/scores", "[0.9, 0.1, 0.1]", &uplink("result/levels/a"));
    assert_eq!(result.json()["label"], "low", "the other goes on");
    let status = agent.status();
    let pipeline = named(&status, "pipelines", "slow");
    assert_eq!((&pipeline["state"], &pipeline["refusal"]), (&"refused".into(), &refused["message"]));
    assert!(agent.runs());
}
