//! Keys: one ed25519 key a file, PKCS#8 in PEM.
//!
//! A file is called `<role>-<first 16 hex digits of the key's id>.pem`, so the right one is found without opening, and
//! without asking for the passphrase of, any other. It is made at once with mode 0600 and refused if others may read
//! it. With a passphrase it is encrypted (PBES2: scrypt with N = 2¹⁵, r = 8, p = 1, and AES-256-CBC). What is in a key
//! is never shown: neither by an error nor by `Debug`.

use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use limpet_wire::depot::{Hex, Sha256};
use pkcs8::der::zeroize::Zeroizing;
use pkcs8::{EncodePrivateKey as _, EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument};
use tough::schema::key::Key;
use tough::sign::Sign as _;

use super::PublishError;

/// Largest file of a key that is read, in bytes.
const FILE_MAX: u64 = 16 * 1024;

/// A passphrase; wiped from memory when it is dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes over a passphrase.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A key that can sign.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    id: Sha256,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", Hex(&self.id))
    }
}

impl SigningKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// [`PublishError::Refused`] if the system gives no random numbers.
    pub fn generate() -> Result<Self, PublishError> {
        let pair = Ed25519KeyPair::generate()
            .map_err(|_| PublishError::Refused("no key can be made: the system gave no random numbers".to_owned()))?;
        Ok(Self::of(pair))
    }

    fn of(pair: Ed25519KeyPair) -> Self {
        let id = id_of(&pair.tuf_key());
        Self { pair, id }
    }

    /// The id that metadata names it by: the digest of its public half in canonical JSON.
    pub fn id(&self) -> Sha256 {
        self.id
    }

    /// Its public half, as metadata has it.
    pub fn public(&self) -> Key {
        self.pair.tuf_key()
    }

    /// A signature.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }

    /// Writes it to a new file of mode 0600, encrypted if there is a passphrase.
    ///
    /// # Errors
    /// [`PublishError`], also if the file is there already.
    pub fn write(&self, folder: &Path, role: &str, passphrase: Option<&Secret>) -> Result<PathBuf, PublishError> {
        let path = folder.join(file_name(role, &self.id));
        let failed = |_| PublishError::Key { path: path.clone(), reason: "the key cannot be encoded".to_owned() };
        let document =
            self.pair.to_pkcs8v1().map_err(|_| failed(pkcs8::Error::KeyMalformed(pkcs8::KeyError::Invalid)))?;
        let info = PrivateKeyInfoRef::try_from(document.as_ref()).map_err(failed)?;
        let text: Zeroizing<String> = match passphrase {
            None => info.to_pkcs8_pem(LineEnding::LF).map_err(failed)?,
            Some(passphrase) => info
                .encrypt(passphrase.bytes())
                .map_err(failed)?
                .to_pem("ENCRYPTED PRIVATE KEY", LineEnding::LF)
                .map_err(|_| failed(pkcs8::Error::KeyMalformed(pkcs8::KeyError::Invalid)))?,
        };
        // A temporary file has mode 0600 from its first moment, and gets its name when it is whole.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(PublishError::io(folder, "written"))?;
        file.write_all(text.as_bytes()).map_err(PublishError::io(&path, "written"))?;
        file.as_file().sync_all().map_err(PublishError::io(&path, "written"))?;
        file.persist_noclobber(&path).map_err(|error| PublishError::io(&path, "written")(error.error))?;
        Ok(path)
    }

    /// Reads a key; `ask` is called for the passphrase if it is encrypted.
    ///
    /// # Errors
    /// [`PublishError::Key`] if others may read the file, the passphrase is wrong, or it holds no ed25519 key.
    pub fn read(path: &Path, ask: &dyn Fn(&Path) -> Result<Secret, PublishError>) -> Result<Self, PublishError> {
        let refuse = |reason: &str| PublishError::Key { path: path.to_owned(), reason: reason.to_owned() };
        let file = File::open(path).map_err(PublishError::io(path, "read"))?;
        let metadata = file.metadata().map_err(PublishError::io(path, "read"))?;
        if !metadata.is_file() {
            return Err(refuse("is not a plain file; expected a key in PEM"));
        }
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(refuse(&format!(
                "has mode {mode:04o}, so others can read or change the key; expected 0600: run `chmod 600` on it, and \
                 rotate the key if somebody may have read it"
            )));
        }
        let mut text = Zeroizing::new(String::new());
        file.take(FILE_MAX)
            .read_to_string(&mut text)
            .map_err(|_| refuse("cannot be read as text; expected a key in PEM"))?;
        let (label, document) =
            SecretDocument::from_pem(&text).map_err(|_| refuse("is damaged, or not a key in PEM"))?;
        let document = match label {
            "PRIVATE KEY" => document,
            "ENCRYPTED PRIVATE KEY" => {
                let passphrase = ask(path)?;
                let encrypted = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes())
                    .map_err(|_| refuse("is damaged: no encrypted PKCS#8 key"))?;
                encrypted.decrypt(passphrase.bytes()).map_err(|_| {
                    refuse("does not open with this passphrase; it is another one, or the file is damaged")
                })?
            }
            _ => return Err(refuse("holds something else than a private key in PKCS#8")),
        };
        let pair = Ed25519KeyPair::from_pkcs8(document.as_bytes())
            .map_err(|_| refuse("holds a key of another kind; expected ed25519"))?;
        debug_assert_eq!(pair.public_key().as_ref().len(), 32);
        Ok(Self::of(pair))
    }
}

/// The id of a key.
pub(super) fn id_of(key: &Key) -> Sha256 {
    let id = key.key_id().expect("a key of plain values serializes");
    (*id).try_into().expect("a SHA-256 has 32 bytes")
}

/// Name of a key's file.
pub fn file_name(role: &str, id: &Sha256) -> String {
    format!("{role}-{}.pem", &Hex(id).to_string()[..16])
}

/// Makes a folder that nobody else can look into, if it is not there.
///
/// # Errors
/// [`PublishError::Io`].
pub fn make_folder(folder: &Path) -> Result<(), PublishError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(PublishError::io(folder, "made"))
}

/// Asks for the passphrase of a file.
pub type Ask = Box<dyn Fn(&Path) -> Result<Secret, PublishError> + Send + Sync>;

/// The folders in which keys are, and where passphrases come from.
pub struct KeyRing {
    online: PathBuf,
    offline: Option<PathBuf>,
    ask: Ask,
}

impl KeyRing {
    /// Keys in `online`, and in `offline` those of root and targets, if that folder is at hand.
    pub fn new(online: &Path, offline: Option<&Path>, ask: Ask) -> Self {
        Self { online: online.to_owned(), offline: offline.map(Path::to_owned), ask }
    }

    /// The folder that the publisher's own copy lies in.
    pub fn folder(&self) -> &Path {
        &self.online
    }

    /// Where new keys of a role belong.
    pub fn folder_for(&self, role: super::Role) -> &Path {
        match &self.offline {
            Some(offline) if role.is_offline() => offline,
            _ => &self.online,
        }
    }

    /// Those keys of a role that are at hand: enough to sign.
    ///
    /// # Errors
    /// [`PublishError::KeysMissing`] with the names of the files, or [`PublishError::Key`].
    pub fn signers(&self, role: &'static str, ids: &[Sha256], threshold: u64) -> Result<Vec<SigningKey>, PublishError> {
        let folders: Vec<&PathBuf> = std::iter::once(&self.online).chain(&self.offline).collect();
        let mut found = Vec::new();
        let mut missing = Vec::new();
        for id in ids {
            let name = file_name(role, id);
            match folders.iter().map(|folder| folder.join(&name)).find(|path| path.exists()) {
                None => missing.push(name),
                Some(path) => {
                    let key = SigningKey::read(&path, &self.ask)?;
                    if key.id() != *id {
                        return Err(PublishError::Key {
                            path,
                            reason: format!("holds the key {}; expected {}", Hex(&key.id()), Hex(id)),
                        });
                    }
                    found.push(key);
                }
            }
        }
        if (found.len() as u64) < threshold {
            let shown: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
            return Err(PublishError::KeysMissing {
                role,
                found: found.len(),
                threshold,
                missing: missing.join(", "),
                folders: shown.join(" and "),
            });
        }
        Ok(found)
    }
}
