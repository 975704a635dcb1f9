//! A wire that knows MQTT: between a client and a broker, it loses messages or lets them through slowly.
//!
//! What [`Proxy`](crate::Proxy) does to a connection, this does to the messages in it. A message that it loses on the way
//! to the client is acknowledged to the broker, which so believes that it came: just as a broker whose queue is full, and
//! not like a wire that is cut.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Packet types of MQTT, in the upper half of the first byte.
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;

/// The wire.
pub struct Sieve {
    port: u16,
    rules: Arc<Rules>,
}

#[derive(Default)]
struct Rules {
    /// Every so many messages to the client, one is lost; none if 0.
    nth: u64,
    seen: AtomicU64,
    lost: AtomicU64,
    /// Bytes a second of messages to the broker; as fast as it goes if 0.
    rate: AtomicUsize,
}

impl Sieve {
    /// A wire to a port of the loopback interface that loses every `nth` message on its way to the client.
    pub fn losing(broker: u16, nth: u64) -> Self {
        Self::to(broker, Rules { nth, ..Rules::default() })
    }

    /// A wire to a port of the loopback interface that takes so many bytes a second of messages to the broker.
    pub fn slow(broker: u16, rate: usize) -> Self {
        Self::to(broker, Rules { rate: rate.into(), ..Rules::default() })
    }

    fn to(broker: u16, rules: Rules) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback interface has free ports");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let sieve = Self { port, rules: Arc::new(rules) };
        let rules = Arc::clone(&sieve.rules);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)) else { continue };
                for stream in [&near, &far] {
                    // Only the latency suffers if it is refused.
                    let _ = stream.set_nodelay(true);
                }
                let clone = |stream: &TcpStream| stream.try_clone().expect("a socket can be duplicated");
                let (from_near, from_far) = (clone(&near), clone(&far));
                // Acknowledgements of what is lost go to the broker between the client's own packets.
                let far = Arc::new(Mutex::new(far));
                let (rules, rules_too, far_too) = (Arc::clone(&rules), Arc::clone(&rules), Arc::clone(&far));
                thread::spawn(move || {
                    // Either end may end the connection.
                    let _ = to_broker(&from_near, &far, &rules);
                    shut(&from_near, &far);
                });
                thread::spawn(move || {
                    let _ = to_client(&from_far, &near, &far_too, &rules_too);
                    shut(&near, &far_too);
                });
            }
        });
        sieve
    }

    /// The URL of its near end.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Messages that it lost so far.
    pub fn lost(&self) -> u64 {
        self.rules.lost.load(Ordering::SeqCst)
    }

    /// Takes messages to the broker as fast as they come from now on.
    pub fn widen(&self) {
        self.rules.rate.store(0, Ordering::SeqCst);
    }
}

fn to_broker(mut near: &TcpStream, far: &Mutex<TcpStream>, rules: &Rules) -> io::Result<()> {
    loop {
        let packet = packet(&mut near)?;
        let rate = rules.rate.load(Ordering::SeqCst);
        if rate > 0 && packet[0] >> 4 == PUBLISH {
            thread::sleep(Duration::from_secs_f64(packet.len() as f64 / rate as f64));
        }
        far.lock().unwrap_or_else(PoisonError::into_inner).write_all(&packet)?;
    }
}

fn to_client(mut from: &TcpStream, mut near: &TcpStream, far: &Mutex<TcpStream>, rules: &Rules) -> io::Result<()> {
    loop {
        let packet = packet(&mut from)?;
        let publish = packet[0] >> 4 == PUBLISH;
        if !(publish && rules.nth > 0 && (rules.seen.fetch_add(1, Ordering::SeqCst) + 1).is_multiple_of(rules.nth)) {
            near.write_all(&packet)?;
            continue;
        }
        rules.lost.fetch_add(1, Ordering::SeqCst);
        // At QoS 1 its id stands after the topic.
        if packet[0] >> 1 & 3 == 1 {
            let body = packet.len() - length(&packet[1..]).expect("it was read by it");
            let topic = usize::from(u16::from_be_bytes([packet[body], packet[body + 1]]));
            let id = [packet[body + 2 + topic], packet[body + 3 + topic]];
            let answer = [PUBACK << 4, 2, id[0], id[1]];
            far.lock().unwrap_or_else(PoisonError::into_inner).write_all(&answer)?;
        }
    }
}

/// One whole packet.
fn packet(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut packet = vec![0; 2];
    from.read_exact(&mut packet)?;
    let left = loop {
        if let Some(left) = length(&packet[1..]) {
            break left;
        }
        if packet.len() > 4 {
            return Err(io::Error::other("no length of a packet"));
        }
        let mut more = [0];
        from.read_exact(&mut more)?;
        packet.push(more[0]);
    };
    let head = packet.len();
    packet.resize(head + left, 0);
    from.read_exact(&mut packet[head..])?;
    Ok(packet)
}

/// The remaining length that a packet has after its first byte, if all of its digits are there.
fn length(digits: &[u8]) -> Option<usize> {
    let mut length = 0;
    for (place, digit) in digits.iter().take(4).enumerate() {
        length |= usize::from(digit & 0x7f) << (7 * place);
        if digit & 0x80 == 0 {
            return Some(length);
        }
    }
    None
}

fn shut(near: &TcpStream, far: &Mutex<TcpStream>) {
    // The other direction may have ended it already.
    let _ = near.shutdown(Shutdown::Both);
    let _ = far.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Both);
}
