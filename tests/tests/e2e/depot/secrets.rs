//! What must never be shown: keys, their passphrase, and passwords.

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use limpet_tests::agent::Home;
use limpet_tests::broker::passwords;
use limpet_tests::program::{Outcome, run_with, text_of};
use limpet_tests::{Agent, Broker, Client, Package};

use crate::sound;

const PASSPHRASE: &str = "moth-lantern-quarry-7131";
const PASSWORD: &str = "brook-saddle-4402";

/// Everything that was said.
#[derive(Default)]
struct Said(String);

impl Said {
    fn hear(&mut self, outcome: &Outcome) {
        self.0 += &outcome.stdout;
        self.0 += &outcome.stderr;
    }
}

/// The files of keys in a folder whose names start like this, and what is in them.
fn keys_in(folder: &Path, start: &str) -> Vec<(PathBuf, String)> {
    let files = std::fs::read_dir(folder).expect("it is there").map_while(Result::ok).map(|entry| entry.path());
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let keys = files.filter(|path| name(path).starts_with(start) && name(path).ends_with(".pem"));
    keys.map(|path| (path.clone(), std::fs::read_to_string(&path).expect("a key is text"))).collect()
}

/// Lines of the keys in a folder that say something of what they are.
fn lines_of_keys(folder: &Path) -> Vec<String> {
    let keys = keys_in(folder, "");
    assert!(keys.len() >= 5, "every role has a key");
    let lines = keys.iter().flat_map(|(_, text)| text.lines().filter(|line| !line.starts_with('-')));
    lines.map(str::to_owned).collect()
}

#[test]
fn neither_keys_nor_passphrase_nor_passwords_are_ever_said() {
    let users = passwords(&[("all", PASSWORD)]);
    let broker = Broker::start_with("allow_anonymous false\npassword_file {dir}/passwd\n", &[("passwd", &users)]);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = |name: &str| folder.path().join(name);
    let file = |name: &str, content: &str| {
        std::fs::write(path(name), content).expect("a temporary file can be written");
        text_of(&path(name)).to_owned()
    };
    let (password, passphrase) = (file("password", PASSWORD), file("passphrase", PASSPHRASE));
    let wrong = file("wrong", "another passphrase");
    let (keys, url) = (text_of(&path("keys")).to_owned(), broker.url());
    let place = ["--broker", &url, "--patience", "1", "--username", "all", "--password-file", &password];
    // Whatever a variable would make it say.
    let loud = [("RUST_LOG", "trace"), ("RUST_BACKTRACE", "full")];
    let mut said = Said::default();
    let mut lab = |code: i32, arguments: &[&str], passphrase: &[&str], more: &[(&str, &str)]| {
        let all = [&["depot"], arguments, &place, &["--keys", &keys], passphrase].concat();
        let outcome = run_with("limpet-lab", &all, &[&loud[..], more].concat(), b"");
        said.hear(&outcome);
        outcome.expect_code(code)
    };
    let given = ["--passphrase-file", passphrase.as_str()];
    let (package, newer) = (Package::loudness(), Package::loudness_of("2.0.0", 0.01));
    let (package, newer) = (text_of(package.path()), text_of(newer.path()));
    lab(0, &["init"], &given, &[]);
    lab(0, &["publish", package], &given, &[]);
    lab(0, &["publish", newer, "--percent", "0"], &[], &[("LIMPET_DEPOT_PASSPHRASE", PASSPHRASE)]);
    lab(1, &["refresh"], &["--passphrase-file", &wrong], &[]);
    lab(1, &["refresh"], &[], &[("LIMPET_DEPOT_PASSPHRASE", "another passphrase")]);
    let asked = lab(1, &["refresh"], &[], &[]);
    assert!(asked.stderr.contains("--passphrase-file"), "{}", asked.stderr);
    let mut secrets = lines_of_keys(&path("keys"));
    lab(0, &["rotate-keys"], &given, &[]);
    for command in
        [&["list"][..], &["verify"], &["repair", package], &["gc"], &["rollout", "loudness", "2.0.0", "--halt"]]
    {
        lab(0, command, &given, &[]);
    }
    // A key that is damaged, or open to others.
    secrets.extend(lines_of_keys(&path("keys")));
    let signing: Vec<(PathBuf, String)> = keys_in(&path("keys"), "timestamp-");
    signing.iter().for_each(|(key, text)| std::fs::write(key, text.replace('A', "B")).unwrap());
    lab(1, &["refresh"], &given, &[]);
    signing.iter().for_each(|(key, text)| std::fs::write(key, text).unwrap());
    let mode = |mode| signing.iter().for_each(|(key, _)| set_permissions(key, Permissions::from_mode(mode)).unwrap());
    mode(0o644);
    let open = lab(1, &["refresh"], &given, &[]);
    assert!(open.stderr.contains("0600"), "{}", open.stderr);
    mode(0o600);
    lab(0, &["withdraw", "loudness", "2.0.0"], &given, &[]);

    // The agent, with a log of everything, and all that it sends.
    let mut client = Client::connect_as(&broker, Some(("all", PASSWORD))).expect("the password is right");
    client.subscribe(&["limpet/1/#"]);
    let any = Package::loudness();
    let pipeline = sound(&any, "").replace(&any.display(), "loudness@*");
    let config = format!(
        "[log]\nlevel = \"trace\"\n[broker.local]\nurl = \"{url}\"\nusername = \"all\"\npassword_file = \"{password}\"\n\
         [depot]\nroot = \"{keys}/root.json\"\njitter = \"0s\"\n{pipeline}"
    );
    let agent = Agent::start_in(Home::empty(), &config);
    agent.wait_for_model(&mut client, "loudness", "active");
    let status = agent.status().to_string();
    let (_, home, log) = agent.stop();
    said.0 += &log.join("\n");
    said.0 += &status;
    while let Some(message) = client.try_wait_for(std::time::Duration::from_millis(100), |_| true) {
        said.0 += &String::from_utf8_lossy(&message.payload);
    }
    let record = home.record("loudness").expect("it served");
    assert_eq!(record["active"]["version"], "1.0.0");

    secrets.extend([PASSPHRASE.to_owned(), PASSWORD.to_owned()]);
    for secret in secrets {
        assert!(!said.0.contains(&secret), "{secret:?} was said:\n{}", said.0);
    }
}
