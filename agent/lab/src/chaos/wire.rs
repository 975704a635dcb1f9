//! The wire between the agent and the uplink's broker: it reads what passes, and can fail in every way that a wire fails.
//!
//! It knows as much of MQTT 5 as it takes to tell which message an acknowledgement is for. What the broker has acknowledged
//! counts as delivered, whether the acknowledgement reaches the agent or not.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::judge::Judge;

/// Packet types, in the upper half of the first byte.
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
/// PUBACK: quota exceeded.
const QUOTA_EXCEEDED: u8 = 0x97;
/// How often a connection on which nothing passes any more looks whether it has been closed.
const LOOK: Duration = Duration::from_millis(50);

/// What the wire does with what it is given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// It lets everything through.
    Through,
    /// Each packet takes so long, and so many bytes go in a second.
    Slow { delay: Duration, bytes_per_s: f64 },
    /// Results do not reach the broker: the agent is told that a quota is exceeded.
    Refusing,
    /// Acknowledgements do not reach the agent. Those of a connection that is still there come when this is over.
    Withholding,
    /// Connections are accepted, and nothing passes. Those that are there stay so for ever.
    Frozen,
    /// Connections are closed at once.
    Down,
}

/// A wire from a port of its own to a broker's.
pub struct Wire {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    broker: u16,
    judge: Arc<Judge>,
    mode: Mutex<Mode>,
    connections: Mutex<Vec<Arc<Connection>>>,
}

struct Connection {
    near: TcpStream,
    far: TcpStream,
    /// Acknowledgements that the agent has not got yet. Whoever writes to the agent holds this.
    withheld: Mutex<Vec<u8>>,
    frozen: AtomicBool,
    /// Results on their way to the broker, by packet id.
    pending: Mutex<HashMap<u16, (String, Vec<u8>)>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wire {
    /// A wire to a port of the loopback interface.
    ///
    /// # Errors
    /// If there is no port for its own end.
    pub fn to(broker: u16, judge: Arc<Judge>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared { broker, judge, mode: Mutex::new(Mode::Through), connections: Mutex::default() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(|near| accepting.accept(near)));
        Ok(Self { port, shared })
    }

    /// The port of its near end.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes what it does from now on.
    pub fn set(&self, mode: Mode) {
        *locked(&self.shared.mode) = mode;
        match mode {
            Mode::Down => self.cut(),
            Mode::Frozen => {
                locked(&self.shared.connections).iter().for_each(|c| c.frozen.store(true, Ordering::SeqCst));
            }
            Mode::Withholding => {}
            Mode::Through | Mode::Slow { .. } | Mode::Refusing => {
                let connections = locked(&self.shared.connections).clone();
                // A connection that has ended, or hangs, takes none any more.
                let open = connections.iter().filter(|connection| !connection.frozen.load(Ordering::SeqCst));
                open.for_each(|connection| _ = connection.release());
            }
        }
    }

    /// Closes all connections.
    pub fn cut(&self) {
        locked(&self.shared.connections).drain(..).for_each(|connection| connection.close());
    }
}

impl Shared {
    fn mode(&self) -> Mode {
        *locked(&self.mode)
    }

    fn accept(self: &Arc<Self>, near: TcpStream) {
        let mode = self.mode();
        if mode == Mode::Down {
            return;
        }
        // A broker that is gone refuses, and so does the wire.
        let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.broker)) else { return };
        // Only the latency suffers if it is refused.
        let _ = near.set_nodelay(true).and_then(|()| far.set_nodelay(true));
        let connection = Arc::new(Connection {
            near,
            far,
            withheld: Mutex::default(),
            frozen: AtomicBool::new(mode == Mode::Frozen),
            pending: Mutex::default(),
        });
        locked(&self.connections).push(Arc::clone(&connection));
        for to_broker in [true, false] {
            let (shared, connection) = (Arc::clone(self), Arc::clone(&connection));
            thread::spawn(move || {
                // Either end may end the connection.
                let _ = if to_broker { shared.to_broker(&connection) } else { shared.to_agent(&connection) };
                connection.close();
                locked(&shared.connections).retain(|other| !Arc::ptr_eq(other, &connection));
            });
        }
    }

    fn to_broker(&self, connection: &Connection) -> io::Result<()> {
        loop {
            let packet = Packet::read(&mut &connection.near)?;
            if connection.hangs()? {
                continue;
            }
            let mode = self.take_time(packet.bytes.len());
            if let Some((id, topic, payload)) = packet.acknowledged_publish()
                && topic.contains("/result/")
            {
                if mode == Mode::Refusing {
                    let [high, low] = id.to_be_bytes();
                    connection.answer(&[PUBACK << 4, 3, high, low, QUOTA_EXCEEDED])?;
                    continue;
                }
                locked(&connection.pending).insert(id, (topic.to_owned(), payload.to_vec()));
            }
            (&connection.far).write_all(&packet.bytes)?;
        }
    }

    fn to_agent(&self, connection: &Connection) -> io::Result<()> {
        loop {
            let packet = Packet::read(&mut &connection.far)?;
            if let Some((id, reason)) = packet.acknowledgement()
                && let Some((topic, payload)) = locked(&connection.pending).remove(&id)
                && reason < 0x80
            {
                self.judge.delivered(&topic, &payload);
            }
            self.take_time(packet.bytes.len());
            if !connection.frozen.load(Ordering::SeqCst) {
                self.pass_on(connection, &packet)?;
            }
        }
    }

    /// Sends the agent a packet, or withholds it.
    fn pass_on(&self, connection: &Connection, packet: &Packet) -> io::Result<()> {
        let mut withheld = locked(&connection.withheld);
        // Looked at while the lock is held: whoever ends the withholding takes it after that, so nothing stays behind.
        if self.mode() == Mode::Withholding && packet.acknowledgement().is_some() {
            withheld.extend_from_slice(&packet.bytes);
            return Ok(());
        }
        (&connection.near).write_all(&packet.bytes)
    }

    /// Takes as long as so many bytes take by now, and gives what is done with them.
    fn take_time(&self, bytes: usize) -> Mode {
        let mode = self.mode();
        if let Mode::Slow { delay, bytes_per_s } = mode {
            thread::sleep(delay + Duration::from_secs_f64(bytes as f64 / bytes_per_s));
        }
        mode
    }
}

impl Connection {
    /// Whether nothing passes here any more. What the agent writes is taken, as by a router that is gone.
    fn hangs(&self) -> io::Result<bool> {
        let frozen = self.frozen.load(Ordering::SeqCst);
        if frozen {
            thread::sleep(LOOK);
        }
        Ok(frozen)
    }

    /// Sends the agent a packet of the wire's own.
    fn answer(&self, packet: &[u8]) -> io::Result<()> {
        let _turn = locked(&self.withheld);
        (&self.near).write_all(packet)
    }

    /// Sends the agent what was withheld.
    fn release(&self) -> io::Result<()> {
        let mut withheld = locked(&self.withheld);
        let bytes = std::mem::take(&mut *withheld);
        (&self.near).write_all(&bytes)
    }

    fn close(&self) {
        // The other direction may have ended it already.
        let _ = self.near.shutdown(Shutdown::Both);
        let _ = self.far.shutdown(Shutdown::Both);
    }
}

/// One whole packet.
struct Packet {
    bytes: Vec<u8>,
    /// Where what comes after the fixed header begins.
    body: usize,
}

impl Packet {
    fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut bytes = vec![0; 2];
        from.read_exact(&mut bytes)?;
        while bytes[bytes.len() - 1] & 0x80 != 0 {
            if bytes.len() > 4 {
                return Err(io::Error::other("no length of a packet"));
            }
            let mut more = [0];
            from.read_exact(&mut more)?;
            bytes.push(more[0]);
        }
        let body = bytes.len();
        let (length, _) = variable(&bytes[1..]).ok_or_else(|| io::Error::other("no length of a packet"))?;
        bytes.resize(body + length, 0);
        from.read_exact(&mut bytes[body..])?;
        Ok(Self { bytes, body })
    }

    fn kind(&self) -> u8 {
        self.bytes[0] >> 4
    }

    /// Packet id, topic and payload of a PUBLISH that wants an acknowledgement.
    fn acknowledged_publish(&self) -> Option<(u16, &str, &[u8])> {
        if self.kind() != PUBLISH || self.bytes[0] >> 1 & 3 == 0 {
            return None;
        }
        let (length, rest) = self.bytes.get(self.body..)?.split_first_chunk::<2>()?;
        let (topic, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        let (id, rest) = rest.split_first_chunk::<2>()?;
        let (properties, digits) = variable(rest)?;
        Some((u16::from_be_bytes(*id), std::str::from_utf8(topic).ok()?, rest.get(digits + properties..)?))
    }

    /// Packet id and reason of a PUBACK.
    fn acknowledgement(&self) -> Option<(u16, u8)> {
        let body = self.bytes.get(self.body..).filter(|_| self.kind() == PUBACK)?;
        let (id, rest) = body.split_first_chunk::<2>()?;
        Some((u16::from_be_bytes(*id), rest.first().copied().unwrap_or(0)))
    }
}

/// A number as MQTT writes lengths, and how many bytes it takes.
fn variable(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (place, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((value, place + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishes_and_their_acknowledgements_are_told_apart() {
        let publish = [0x32, 12, 0, 1, b't', 0x01, 0x02, 3, 1, 2, 3, b'p', b'a', b'y'];
        let packet = Packet::read(&mut &publish[..]).unwrap();
        assert_eq!(packet.acknowledged_publish(), Some((0x0102, "t", &b"pay"[..])));
        assert_eq!(packet.acknowledgement(), None);
        let fleeting = Packet::read(&mut &[0x30, 5, 0, 1, b't', 0, b'p'][..]).unwrap();
        assert_eq!(fleeting.acknowledged_publish(), None);
        for (bytes, reason) in [(&[0x40, 2, 1, 2][..], 0), (&[0x40, 3, 1, 2, 0x97][..], 0x97)] {
            assert_eq!(Packet::read(&mut &bytes[..]).unwrap().acknowledgement(), Some((0x0102, reason)));
        }
    }

    #[test]
    fn lengths_of_several_bytes_are_read() {
        let mut bytes = vec![0x30, 0xc8, 0x01];
        bytes.resize(3 + 200, 7);
        assert_eq!(Packet::read(&mut &bytes[..]).unwrap().bytes.len(), 203);
        assert!(Packet::read(&mut &[0x30, 0xff, 0xff, 0xff, 0xff, 0x01][..]).is_err());
    }
}
