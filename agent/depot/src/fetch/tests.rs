use std::collections::HashMap;

use limpet_wire::depot::Sha256;

use super::*;
use crate::chunk::tests::{noise, package};
use crate::chunk::{Cut, cut};
use crate::remote::{Bytes, Watched, async_trait};

const BOUNDS: Bounds = Bounds { rate: 1 << 30, disk: 1 << 30 };
const PATIENCE: Duration = Duration::from_millis(200);

/// Gives chunks after a while, and what it lacks never.
struct Shelf {
    chunks: HashMap<Sha256, Vec<u8>>,
    after: Duration,
}

#[async_trait]
impl Remote for Shelf {
    async fn message(&self, name: &Name, _most: usize) -> Result<Bytes, RemoteError> {
        tokio::time::sleep(self.after).await;
        match name {
            Name::Chunk(stored) if self.chunks.contains_key(stored) => Ok(self.chunks[stored].clone().into()),
            _ => std::future::pending().await,
        }
    }

    fn place(&self) -> &str {
        "the shelf"
    }
}

fn runs<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
}

fn example() -> (Index, Vec<Cut>, HashMap<Sha256, Vec<u8>>) {
    let (index, cuts) = cut(&package("1.0.0", &noise(1, 400_000)), &HashMap::new()).unwrap();
    let chunks: HashMap<_, _> = cuts.iter().map(|cut| (cut.reference.stored, cut.stored.clone())).collect();
    assert!(chunks.len() > AT_ONCE);
    (index, cuts, chunks)
}

#[test]
fn a_fetch_of_which_nothing_comes_any_more_says_what_is_missing_and_goes_on_later() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    let (index, cuts, chunks) = example();
    let lost = cuts[2].reference;
    let mut shelf = Shelf { chunks: chunks.clone(), after: Duration::ZERO };
    shelf.chunks.remove(&lost.stored);
    let fetch = |shelf: &Shelf| {
        let watched = Watched::new(shelf, PATIENCE);
        runs(async { watched.bound(chunks_of(&store, &watched, &index)).await? })
    };
    let error = fetch(&shelf).unwrap_err();
    assert!(matches!(error, FetchError::Stalled(_)), "{error}");
    assert!(
        error.to_string().contains(&format!("the shelf: nothing came for 0 s, {}", Name::Chunk(lost.stored))),
        "{error}"
    );
    assert_eq!(store.missing(&index), [lost], "what came stays");
    shelf.chunks = chunks;
    fetch(&shelf).unwrap();
    assert!(store.missing(&index).is_empty());
}

#[test]
fn a_fetch_may_take_long_as_long_as_something_comes() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path()).unwrap();
    let (index, _, chunks) = example();
    let long = chunks.len().div_ceil(AT_ONCE) as u32;
    let shelf = Shelf { chunks, after: PATIENCE * 2 / 3 };
    let begun = std::time::Instant::now();
    let watched = Watched::new(&shelf, PATIENCE);
    runs(watched.bound(chunks_of(&store, &watched, &index))).unwrap().unwrap();
    assert!(long > 1 && begun.elapsed() > PATIENCE, "it took {:?}", begun.elapsed());
    assert!(store.missing(&index).is_empty());
}

async fn chunks_of(store: &Store, remote: &dyn Remote, index: &Index) -> Result<(), FetchError> {
    chunks(store, remote, index, BOUNDS, &|_| {}).await
}
