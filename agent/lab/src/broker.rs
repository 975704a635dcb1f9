//! The embedded broker: rumqttd in this process, for the demo and for a first try without mosquitto.
//!
//! It keeps everything in memory and asks nobody for a password, so it listens on the loopback interface only.
//! It is no broker for production: config/mosquitto.conf shows one with an access list.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

use crate::{mqtt::Address, unavailable};

/// How long the broker may take to listen.
const START_LIMIT: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub struct BrokerArgs {
    /// Port for MQTT 5, on 127.0.0.1
    #[arg(long, default_value_t = 1883)]
    port: u16,
    /// Port for MQTT 3.1.1 clients, on 127.0.0.1; none by default
    #[arg(long)]
    port_v4: Option<u16>,
}

/// Runs `limpet-lab broker`.
pub fn run(args: &BrokerArgs) -> anyhow::Result<()> {
    start(args.port, args.port_v4)?;
    println!("MQTT 5 on {}", Address::local(args.port));
    if let Some(port) = args.port_v4 {
        println!("MQTT 3.1.1 on {}", Address::local(port));
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime did not start")?
        .block_on(tokio::signal::ctrl_c())
        .context("waiting for Ctrl-C")
}

/// Starts a broker on a free port of the loopback interface.
pub fn start_on_free_port() -> anyhow::Result<Address> {
    // The port is free when it is chosen; rumqttd does not take a socket that is bound already.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(|e| unavailable(format!("no free port on 127.0.0.1: {e}")))?
        .port();
    start(port, None)?;
    Ok(Address::local(port))
}

/// Starts a broker and waits until it accepts connections. It runs until the process ends.
///
/// # Errors
/// Unavailable if a port is taken or the broker does not listen in time.
pub fn start(port: u16, port_v4: Option<u16>) -> anyhow::Result<()> {
    for port in [Some(port), port_v4].into_iter().flatten() {
        // rumqttd only logs that it cannot bind, so it is tried first.
        TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .map_err(|e| unavailable(format!("cannot listen on 127.0.0.1:{port}: {e}; choose another with --port")))?;
    }
    let config = Config {
        router: RouterConfig {
            max_connections: 64,
            max_outgoing_packet_count: 200,
            max_segment_size: 1 << 20,
            max_segment_count: 8,
            ..RouterConfig::default()
        },
        v5: Some(server("v5", port)),
        v4: port_v4.map(|port| server("v4", port)),
        ..Config::default()
    };
    let mut broker = Broker::new(config);
    thread::Builder::new()
        .name("broker".into())
        .spawn(move || {
            if let Err(error) = broker.start() {
                eprintln!("limpet-lab: the embedded broker ended: {error}");
            }
        })
        .context("the broker's thread did not start")?;
    for port in [Some(port), port_v4].into_iter().flatten() {
        wait_until_listening(port)?;
    }
    Ok(())
}

fn server(name: &str, port: u16) -> HashMap<String, ServerSettings> {
    let settings = ServerSettings {
        name: name.to_owned(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        tls: None,
        next_connection_delay_ms: 1,
        connections: ConnectionSettings {
            connection_timeout_ms: 5000,
            max_payload_size: 1 << 20,
            max_inflight_count: 200,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    };
    HashMap::from([(name.to_owned(), settings)])
}

fn wait_until_listening(port: u16) -> anyhow::Result<()> {
    let until = Instant::now() + START_LIMIT;
    loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > until => {
                return Err(unavailable(format!("the embedded broker does not listen on port {port}: {error}")));
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}
