//! Where a depot is, where its keys are, and who is told how far it is.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use limpet_depot::publish::keys::Ask;
use limpet_depot::publish::{KeyRing, PublishError, Secret, Watch};
use limpet_depot::remote::{Folder, Shelf};

use super::cli::{KeyArgs, PlaceArgs, TopicArgs};
use super::interrupt;
use super::mqtt::MqttDepot;
use crate::mqtt::broker::{Broker, first_line};
use crate::usage;

/// Environment variable with the passphrase of the keys.
const PASSPHRASE: &str = "LIMPET_DEPOT_PASSPHRASE";

/// Makes the folder that is to be the depot.
pub fn make(args: &PlaceArgs) -> anyhow::Result<()> {
    args.to.as_ref().map_or(Ok(()), |folder| {
        std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))
    })
}

/// Opens the depot.
pub async fn shelf(args: &PlaceArgs) -> anyhow::Result<Box<dyn Shelf>> {
    match (&args.to, &args.broker) {
        (Some(folder), _) if args.login.is_given() => Err(usage(format!(
            "--username, --ca-file and --cert-file are for a broker, and --to {} is a folder; leave them out",
            folder.display()
        ))),
        (Some(folder), _) => {
            // The same folder is the same place from wherever it is named.
            let found = folder.canonicalize().map_err(|error| {
                let shown = folder.display();
                let advice = "`limpet-lab depot init` makes a depot there, also a further one with the same keys";
                crate::unavailable(format!("{shown}: the depot's folder cannot be opened: {error}; {advice}"))
            })?;
            Ok(Box::new(Folder::new(&found)))
        }
        (None, Some(url)) => {
            let id = format!("limpet-lab-depot-{}", std::process::id());
            Ok(Box::new(MqttDepot::connect(Broker::new(url, &args.login)?, prefix(&args.topics)?, &id).await?))
        }
        (None, None) => Err(usage("where is the depot? Give --to DIR or --broker mqtts://HOST:PORT")),
    }
}

/// The prefix of the topics.
pub fn prefix(args: &TopicArgs) -> anyhow::Result<&str> {
    let prefix = args.prefix.trim_end_matches('/');
    if prefix.is_empty() || prefix.contains(['+', '#', '\0']) {
        return Err(usage(format!("--prefix '{}': expected levels of a topic without wildcards", args.prefix)));
    }
    Ok(prefix)
}

/// How long an answer may take.
pub fn patience(args: &PlaceArgs) -> Duration {
    Duration::from_secs(args.patience.max(1))
}

/// A passphrase that needs nobody to type it.
fn given(args: &KeyArgs) -> anyhow::Result<Option<Secret>> {
    let text = match &args.passphrase_file {
        Some(file) => {
            let text = first_line(file)?;
            anyhow::ensure!(!text.is_empty(), "{}: its first line is empty; expected the passphrase", file.display());
            Some(text)
        }
        None => std::env::var(PASSPHRASE).ok(),
    };
    Ok(text.map(Secret::new).filter(|secret| !secret.is_empty()))
}

/// The keys.
pub fn ring(args: &KeyArgs, offline: Option<&Path>) -> anyhow::Result<KeyRing> {
    let given = given(args)?;
    // Asked for once a folder: the keys of one folder have one passphrase.
    let known: Mutex<HashMap<PathBuf, Secret>> = Mutex::default();
    let ask: Ask = Box::new(move |path| {
        if let Some(given) = &given {
            return Ok(given.clone());
        }
        let folder = path.parent().unwrap_or(path).to_owned();
        let mut known = known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(secret) = known.get(&folder) {
            return Ok(secret.clone());
        }
        let wrong = |reason: String| PublishError::Key { path: path.to_owned(), reason };
        if !std::io::stdin().is_terminal() {
            return Err(wrong(format!(
                "is encrypted, and there is no terminal to ask for its passphrase; give --passphrase-file FILE or set \
                 {PASSPHRASE}"
            )));
        }
        let text = rpassword::prompt_password(format!("Passphrase of the keys in {}: ", folder.display()))
            .map_err(|error| wrong(format!("its passphrase could not be read: {error}")))?;
        let secret = Secret::new(text);
        known.insert(folder, secret.clone());
        Ok(secret)
    });
    Ok(KeyRing::new(&args.keys, args.offline_keys.as_deref().or(offline), ask))
}

/// The passphrase for new keys, none if they are not to be encrypted.
pub fn new_passphrase(args: &KeyArgs, none: bool) -> anyhow::Result<Option<Secret>> {
    if none {
        return Ok(None);
    }
    if let Some(given) = given(args)? {
        return Ok(Some(given));
    }
    if !std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let read = |text: &str| rpassword::prompt_password(text).context("the passphrase could not be read");
    let first = read("Passphrase for the new keys (empty: they are not encrypted): ")?;
    if first.is_empty() {
        return Ok(None);
    }
    anyhow::ensure!(read("The same again: ")? == first, "the two passphrases differ; nothing was done");
    Ok(Some(Secret::new(first)))
}

/// A bar on a terminal, else a line when something begins.
pub struct Bar {
    bar: ProgressBar,
    drawn: bool,
}

impl Bar {
    /// On standard error.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template(
            "{msg} {bar:30} {percent:>3} % · {bytes} of {total_bytes} · {bytes_per_sec} · {eta} left",
        );
        bar.set_style(style.expect("the template is valid"));
        Self { bar, drawn: std::io::stderr().is_terminal() }
    }
}

impl Watch for Bar {
    fn begin(&self, what: &str, bytes: u64) {
        if bytes == 0 {
            return;
        }
        interrupt::begin(what, bytes);
        if self.drawn {
            self.bar.reset();
            self.bar.set_length(bytes);
            self.bar.set_message(what.to_owned());
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        } else {
            eprintln!("{what}: {} bytes", crate::bench::text::thousands(bytes));
        }
    }

    fn moved(&self, bytes: u64) {
        interrupt::moved(bytes);
        self.bar.inc(bytes);
    }

    fn end(&self) {
        if self.drawn {
            self.bar.finish_and_clear();
        }
    }
}
