//! TLS of a link: whom it trusts, who it says it is, and what its errors mean.
//!
//! The files are read anew for every connection, so a certificate that was renewed needs no restart. The server's name is
//! always checked; there is no way to switch that off.

use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

use crate::config::{Broker, BrokerUrl};

/// The client's side of TLS, by the broker's files as they are now.
///
/// # Errors
/// A sentence that names the file and what to do.
pub fn client(broker: &Broker) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder =
        builder.map_err(|error| format!("TLS does not start: {error}"))?.with_root_certificates(roots(broker)?);
    let config = match (&broker.cert_file, &broker.key_file) {
        (Some(cert_file), Some(key_file)) => {
            let (chain, key) = (certificates("cert_file", cert_file)?, key(key_file)?);
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                let (cert, key) = (cert_file.display(), key_file.display());
                if let rustls::Error::InvalidCertificate(CertificateError::Other(why)) = &error
                    && says(why, "UnsupportedCertVersion")
                {
                    return format!("cert_file {cert} is of X.509 version 1, which TLS does not take; have one of version 3 made (openssl x509 -req with -extfile)");
                }
                format!("cert_file {cert} and key_file {key} do not go together ({error}); give the key that the certificate was made for")
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// Those who may vouch for the broker.
fn roots(broker: &Broker) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(ca_file) = &broker.ca_file else {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            return Err("this system knows no certificate authority; install ca-certificates, or set ca_file".into());
        }
        return Ok(roots);
    };
    for certificate in certificates("ca_file", ca_file)? {
        roots.add(certificate).map_err(|error| {
            format!(
                "ca_file {} holds a certificate that is none ({error}); put the authority's there",
                ca_file.display()
            )
        })?;
    }
    Ok(roots)
}

/// The certificates in a file of PEM.
///
/// # Errors
/// A sentence that names the file and what to do.
pub fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let read = fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::IsADirectory => format!("{key} {shown} is a folder; name the file in it"),
        _ => format!("{key} {shown} cannot be read: {error}"),
    })?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read).collect();
    let found = found.map_err(|error| format!("{key} {shown} holds no certificates in PEM ({error}); convert it"))?;
    if found.is_empty() {
        return Err(format!("{key} {shown} holds no certificate; expected PEM, '-----BEGIN CERTIFICATE-----'"));
    }
    Ok(found)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let shown = path.display();
    let unreadable = |error: io::Error| format!("key_file {shown} cannot be read: {error}");
    check_permissions("key_file", path).map_err(unreadable)??;
    let read = fs::read(path).map_err(unreadable)?;
    PrivateKeyDer::from_pem_slice(&read).map_err(|error| {
        format!("key_file {shown} holds no private key in PEM ({error}); expected '-----BEGIN PRIVATE KEY-----', without a passphrase")
    })
}

/// Whether nobody can read or change a secret but its owner, and its group may read it at most.
///
/// # Errors
/// What the system says; within, a sentence if others can.
pub fn check_permissions(key: &str, path: &Path) -> io::Result<Result<(), String>> {
    let metadata = fs::metadata(path)?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o037 == 0 {
        return Ok(Ok(()));
    }
    Ok(Err(format!(
        "{key} {} can be read or changed by others (mode {mode:03o}, owner {}); chmod 600 it, or 640 with a group of its own",
        path.display(),
        metadata.uid()
    )))
}

/// What a TLS error means for this broker and what to do, if an error is one.
pub fn explain(error: &(dyn Error + 'static), broker: &Broker, url: &BrokerUrl) -> Option<String> {
    let error = find(error)?;
    let host = &url.host;
    let ca = match &broker.ca_file {
        Some(file) => format!("ca_file {}", file.display()),
        None => "the system's authorities, as no ca_file is set".to_owned(),
    };
    let mine = match &broker.cert_file {
        Some(file) => format!("cert_file {}", file.display()),
        None => "the client certificate that is missing".to_owned(),
    };
    Some(match error {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                "the broker's certificate is signed by nobody in {ca}; put the certificate of the authority that signed it there"
            ),
            // The day and not the moment: a sentence that is another one each time would be told each time.
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!(
                "the broker's certificate has expired by this gateway's clock, which shows {}; renew it at the broker, or set the clock",
                today()
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => format!(
                "the broker's certificate is not valid yet by this gateway's clock, which shows {}; set the clock",
                today()
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
                "the broker's certificate is not for '{host}'; write the name into url that it is for, or have one made for this name"
            ),
            CertificateError::Revoked => {
                "the broker's certificate was revoked; have the broker get another one".to_owned()
            }
            CertificateError::Other(why) if says(why, "UnsupportedCertVersion") => {
                "the broker's certificate is of X.509 version 1, which says nothing of names; have one of version 3 made, with a subjectAltName".to_owned()
            }
            CertificateError::Other(why) if says(why, "CaUsedAsEndEntity") => {
                "the broker shows the certificate of an authority as its own; have one made for the broker that this authority signs".to_owned()
            }
            other => format!("the broker's certificate is not accepted: {other}; have the broker get another one"),
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateRequired => match &broker.cert_file {
                None => "the broker asks for a client certificate; set cert_file and key_file".to_owned(),
                Some(_) => {
                    format!("the broker does not take {mine}; have it signed by an authority that the broker trusts")
                }
            },
            AlertDescription::CertificateExpired => format!("the broker says that {mine} has expired; renew it"),
            AlertDescription::CertificateRevoked => format!("the broker says that {mine} was revoked; get another one"),
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied => {
                format!("the broker refuses {mine} ({alert:?}); have it signed by an authority that the broker trusts")
            }
            AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
                format!(
                    "the broker and this gateway have no version of TLS in common ({alert:?}); it needs TLS 1.2 or 1.3"
                )
            }
            other => format!("the broker ended TLS: {other:?}"),
        },
        rustls::Error::InvalidMessage(_) => {
            format!("the broker does not speak TLS at {url}; give its port for TLS, or a scheme without it")
        }
        other => format!("TLS with the broker failed: {other}"),
    })
}

/// The day that the clock shows.
fn today() -> String {
    let now = crate::wall::now_text();
    now.and_then(|now| Some(now.split_once('T')?.0.to_owned()))
        .unwrap_or_else(|| "nothing that can be right".to_owned())
}

/// Whether it is this error of the certificates' library, which has no type that can be named here.
fn says(why: &rustls::OtherError, word: &str) -> bool {
    format!("{why:?}").contains(word)
}

/// The TLS error in an error, however deep. What an `io::Error` carries is not its source.
fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return Some(found);
    }
    let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    carried.and_then(|carried| find(carried)).or_else(|| find(error.source()?))
}
