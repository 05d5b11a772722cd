//! Whom we talk to: a server is known by its pinned certificate or by an authority, never by nothing.

mod transport;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256};

use crate::Error;
pub(crate) use transport::TlsConnector;

/// SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thumbprint([u8; 32]);

/// Decides whether a server is the right one, and remembers one that was not.
#[derive(Debug)]
pub(crate) struct Verifier {
    provider: Arc<CryptoProvider>,
    pin: Option<Thumbprint>,
    authorities: Option<Arc<WebPkiServerVerifier>>,
    refused: Mutex<Option<Refused>>,
    accepted: Mutex<Option<Thumbprint>>,
}

/// A server that was not the right one.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    /// Its certificate's thumbprint.
    pub thumbprint: Thumbprint,
    /// Why it was refused.
    pub reason: String,
}

impl Verifier {
    /// Accepts the certificate with thumbprint `pin` and no other; without one, those that the authorities in the
    /// file `ca` or, without that, the system's vouch for.
    pub fn new(pin: Option<&str>, ca: Option<&Path>) -> crate::Result<Self> {
        if let Some(pin) = pin {
            return Ok(Self::with(Some(Thumbprint::parse(pin)?), None));
        }
        let roots = Arc::new(roots(ca)?);
        // Without any authority everything is refused, with the thumbprint that could be pinned.
        Ok(Self::with(
            None,
            WebPkiServerVerifier::builder_with_provider(roots, provider()).build().ok(),
        ))
    }

    /// Accepts this certificate, in PEM, and no other; `None` if it is none.
    pub fn pinned(pem: &str) -> Option<Self> {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        Some(Self::with(Some(Thumbprint(Sha256::digest(certificate).into())), None))
    }

    fn with(pin: Option<Thumbprint>, authorities: Option<Arc<WebPkiServerVerifier>>) -> Self {
        let (refused, accepted) = (Mutex::default(), Mutex::default());
        Self { provider: provider(), pin, authorities, refused, accepted }
    }

    /// The server that was refused since it was last asked.
    pub fn take_refused(&self) -> Option<Refused> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The SHA-256 of the certificate that was accepted last, if channels are bound by that hash: a certificate's own
    /// signature says by which (RFC 5929, 4.1).
    pub fn accepted(&self) -> Option<[u8; 32]> {
        let accepted = *self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.map(|thumbprint| thumbprint.0)
    }

    fn accept(&self, certificate: &CertificateDer<'_>, thumbprint: Thumbprint) {
        let has = |oid: &&[u8]| certificate.windows(oid.len()).any(|window| window == *oid);
        let accepted = Some(thumbprint).filter(|_| !OTHER_HASHES.iter().any(has));
        *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = accepted;
    }

    fn refuse(
        &self,
        thumbprint: Thumbprint,
        reason: String,
        error: rustls::Error,
    ) -> rustls::Error {
        let refused = Refused { thumbprint, reason };
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refused);
        error
    }
}

impl Refused {
    /// What is said of the server at `place`.
    pub fn error(self, place: String) -> Error {
        Error::Unreachable {
            place,
            message: format!(
                "its certificate is refused: {}; it has thumbprint {}",
                self.reason, self.thumbprint
            ),
            repair: Some(format!(
                "if that is what the server's own console shows: --tls-thumbprint {}",
                self.thumbprint
            )),
        }
    }
}

/// Signature algorithms with another hash than SHA-256, as DER has them: RSA with SHA-384 and SHA-512, RSA-PSS with any,
/// ECDSA with SHA-384 and SHA-512, Ed25519.
const OTHER_HASHES: [&[u8]; 6] = [
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c",
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d",
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a",
    b"\x2a\x86\x48\xce\x3d\x04\x03\x03",
    b"\x2a\x86\x48\xce\x3d\x04\x03\x04",
    b"\x2b\x65\x70",
];

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let thumbprint = Thumbprint(Sha256::digest(certificate).into());
        if let Some(pin) = self.pin {
            if pin == thumbprint {
                self.accept(certificate, thumbprint);
                return Ok(ServerCertVerified::assertion());
            }
            let error = CertificateError::ApplicationVerificationFailure.into();
            return Err(self.refuse(thumbprint, format!("its thumbprint is not {pin}"), error));
        }
        let Some(authorities) = &self.authorities else {
            let error = CertificateError::UnknownIssuer.into();
            return Err(self.refuse(thumbprint, "no authority is known here".into(), error));
        };
        let verified = authorities.verify_server_cert(certificate, intermediates, name, ocsp, now);
        verified.inspect(|_| self.accept(certificate, thumbprint)).map_err(|error| {
            let reason = match &error {
                // The others are authorities that vouch for themselves.
                rustls::Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::Other(_),
                ) => "no authority that is known here vouches for it".into(),
                error => error.to_string(),
            };
            self.refuse(thumbprint, reason, error)
        })
    }

    // A pin says which key is meant; these say that the server has it.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS with servers that `verifier` takes for the right ones.
pub(crate) fn config(verifier: Arc<Verifier>) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(verifier.provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring has what TLS 1.2 and 1.3 need")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Arc::new(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Thumbprint {
    /// From hexadecimal digits with or without colons.
    fn parse(text: &str) -> crate::Result<Self> {
        let wrong = || Error::Name {
            text: text.into(),
            message: "a thumbprint is 64 hexadecimal digits, the SHA-256 of a certificate".into(),
        };
        let digits: Option<Vec<u32>> = text
            .trim()
            .chars()
            .filter(|letter| *letter != ':')
            .map(|letter| letter.to_digit(16))
            .collect();
        let digits = digits.filter(|digits| digits.len() == 64).ok_or_else(wrong)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (pair[0] * 16 + pair[1]) as u8;
        }
        Ok(Self(bytes))
    }
}

impl std::fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02X}")?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// Certificates of authorities: those in a PEM file, or the system's.
fn roots(ca: Option<&Path>) -> crate::Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    let Some(path) = ca else {
        // What of the system's cannot be read vouches for nobody.
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(store);
    };
    let wrong = |message: String| Error::File {
        path: path.to_owned(),
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, message),
    };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(error.to_string()))?;
    let (added, _) = store.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(wrong("it holds no certificate".into()));
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbprints_are_read_as_everybody_writes_them() {
        let digits = "0123456789abcdef".repeat(4);
        let colons = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        let colons = colons.collect::<Vec<_>>().join(":").to_uppercase();
        assert_eq!(Thumbprint::parse(&digits).unwrap().to_string(), colons);
        assert!(Thumbprint::parse(&colons).unwrap() == Thumbprint::parse(&digits).unwrap());
        for wrong in ["", "01", &digits[1..], &digits.replace('a', "g"), &format!("{digits}00")] {
            assert!(Thumbprint::parse(wrong).is_err(), "{wrong}");
        }
    }
}
