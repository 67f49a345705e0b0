//! Keys and certificates of one test run: an authority, a broker and a client of it, and a
//! stranger whom nobody vouches for.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

/// Files in PEM.
pub struct Keys {
    folder: TempDir,
}

impl Keys {
    pub(super) fn make() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let authority = authority("Authority of the tests");
        let stranger = self::authority("Another authority");
        write(folder.path(), "ca.pem", &authority.pem());
        write(folder.path(), "other-ca.pem", &stranger.pem());
        for (name, issuer) in
            [("broker", &authority), ("client", &authority), ("stranger", &stranger)]
        {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
            params.distinguished_name.push(DnType::CommonName, name);
            let certificate = params.signed_by(&key, issuer).expect("a certificate");
            write(folder.path(), &format!("{name}.pem"), &certificate.pem());
            write(folder.path(), &format!("{name}.key"), &key.serialize_pem());
            let both = format!("{}{}", key.serialize_pem(), certificate.pem());
            write(folder.path(), &format!("{name}-both.pem"), &both);
        }
        Self { folder }
    }

    /// The certificate of the authority that signed the broker's and the client's.
    pub fn authority(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// The certificate of an authority that signed neither.
    pub fn other_authority(&self) -> PathBuf {
        self.file("other-ca.pem")
    }

    /// Certificate and key of a client that the brokers take.
    pub fn client(&self) -> (PathBuf, PathBuf) {
        (self.file("client.pem"), self.file("client.key"))
    }

    /// Certificate and key of a client that the brokers refuse.
    pub fn stranger(&self) -> (PathBuf, PathBuf) {
        (self.file("stranger.pem"), self.file("stranger.key"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn write_properties(&self, put: &mut impl FnMut(&str, &str)) {
        put("ssl.keystore.type", "PEM");
        put("ssl.keystore.location", &self.file("broker-both.pem").display().to_string());
        put("ssl.truststore.type", "PEM");
        put("ssl.truststore.location", &self.authority().display().to_string());
        put("listener.name.tls.ssl.client.auth", "required");
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a signature")
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).expect("a temporary folder");
}
