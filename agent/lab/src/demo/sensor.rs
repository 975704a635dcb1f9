//! The virtual sensor: an accelerometer on a motor, publishing in real time through the broker.
//!
//! A message is a sequence number (u32), the number of its first sample since the start as tag (u64), and
//! [`MESSAGE_SAMPLES`] samples of three axes (i16 each), all little-endian. The agent echoes the tag in the result of
//! the window that the message completes, so every result can be held against what the motor had at that very moment,
//! whatever the two clocks say and however late the agent subscribed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use rumqttc::v5::AsyncClient;
use rumqttc::v5::mqttbytes::QoS;

use super::schedule::Schedule;
use crate::motor::{Condition, LSB_PER_G, Motor, RATE_HZ};

/// Samples in a message: 50 messages a second.
pub const MESSAGE_SAMPLES: u64 = 64;
/// Where the sensor publishes.
pub const TOPIC: &str = "plant/press-3/vibration";
/// Where the agent listens.
pub const TOPIC_FILTER: &str = "plant/{stream}/vibration";

/// A running sensor. It stops when this is dropped.
pub struct Sensor {
    shared: Arc<Shared>,
    started: Instant,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    dropped: AtomicU64,
}

impl Sensor {
    /// Starts publishing the motor with this seed now, as the schedule says, to its end.
    pub fn start(client: AsyncClient, seed: u64, schedule: Schedule) -> anyhow::Result<Self> {
        let mut motor = Motor::new(seed, Condition::Healthy);
        // It has been running for a second when the sensor is switched on, so its resonances have settled.
        for _ in 0..RATE_HZ as u64 {
            motor.sample();
        }
        let shared = Arc::new(Shared::default());
        let started = Instant::now();
        let theirs = shared.clone();
        let thread = thread::Builder::new()
            .name("sensor".into())
            .spawn(move || publish(&client, &mut motor, schedule, started, &theirs))
            .context("the sensor's thread did not start")?;
        Ok(Self { shared, started, thread: Some(thread) })
    }

    /// When it started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Samples that were published.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Acquire)
    }

    /// Messages that the broker's connection did not take in time.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Sensor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic of the sensor was printed when it happened.
            let _ = thread.join();
        }
    }
}

fn publish(client: &AsyncClient, motor: &mut Motor, schedule: Schedule, started: Instant, shared: &Shared) {
    let mut first = 0u64;
    for sequence in 0u32.. {
        if shared.stop.load(Ordering::Acquire) || schedule.end().is_some_and(|end| first >= end) {
            return;
        }
        let mut message = Vec::with_capacity(12 + MESSAGE_SAMPLES as usize * 6);
        message.extend_from_slice(&sequence.to_le_bytes());
        message.extend_from_slice(&first.to_le_bytes());
        for sample in first..first + MESSAGE_SAMPLES {
            motor.set_condition(schedule.condition(schedule.phase_at(sample)));
            for g in motor.sample() {
                // The motor clips at ±16 g, so this fits.
                let step = (f64::from(g) * LSB_PER_G).round() as i16;
                message.extend_from_slice(&step.to_le_bytes());
            }
        }
        first += MESSAGE_SAMPLES;
        // A sensor hands a message over when its last sample has been taken.
        let due = started + Duration::from_secs_f64(first as f64 / RATE_HZ);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // Like a real one, it does not wait for the network.
        if client.try_publish(TOPIC, QoS::AtMostOnce, false, message).is_err() {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        shared.sent.store(first, Ordering::Release);
    }
}
