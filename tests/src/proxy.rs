//! A wire that can be cut or go dead: TCP between the agent and a broker, under the control of a test.
//!
//! While it is cut, connections end at once; while it is dead, they stay and nothing gets through, as behind a router
//! that has lost its table. Those who are connected to the broker itself notice nothing of either.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// The wire.
pub struct Proxy {
    port: u16,
    cut: Arc<AtomicBool>,
    dead: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    /// A wire to a port of the loopback interface.
    ///
    /// # Panics
    /// If there is no free port.
    pub fn to(broker: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback interface has free ports");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let proxy =
            Self { port, cut: Arc::default(), dead: Arc::default(), made: Arc::default(), open: Arc::default() };
        let (cut, dead) = (Arc::clone(&proxy.cut), Arc::clone(&proxy.dead));
        let (made, open) = (Arc::clone(&proxy.made), Arc::clone(&proxy.open));
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if cut.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)) else { continue };
                made.fetch_add(1, Ordering::SeqCst);
                let clone = |stream: &TcpStream| stream.try_clone().expect("a socket can be duplicated");
                for stream in [&near, &far] {
                    // Only the latency suffers if it is refused.
                    let _ = stream.set_nodelay(true);
                }
                open.lock().unwrap_or_else(PoisonError::into_inner).extend([clone(&near), clone(&far)]);
                let (near_too, far_too) = (clone(&near), clone(&far));
                let (dead, dead_too) = (Arc::clone(&dead), Arc::clone(&dead));
                thread::spawn(move || copy(near, far, &dead));
                thread::spawn(move || copy(far_too, near_too, &dead_too));
                // A cut between the check and here would have missed these two.
                if cut.load(Ordering::SeqCst) {
                    shut(&open);
                }
            }
        });
        proxy
    }

    /// The URL of its near end.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Connections that were made so far.
    pub fn connections(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }

    /// Cuts the wire: every connection ends, and no new one lasts.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        shut(&self.open);
    }

    /// Lets nothing through any more, without a word.
    pub fn deaden(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// Mends it. What went in while it was dead is lost.
    pub fn mend(&self) {
        self.dead.store(false, Ordering::SeqCst);
        self.cut.store(false, Ordering::SeqCst);
    }
}

fn shut(open: &Mutex<Vec<TcpStream>>) {
    for stream in open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // It may have ended by itself.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, dead: &AtomicBool) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if !dead.load(Ordering::SeqCst) && to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        // The other direction may have ended it already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}
