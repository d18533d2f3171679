//! TLS for tokio-postgres through rustls, with the five values of libpq's `sslmode`.

use std::sync::Arc;

use anyhow::{Context, bail};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{DatabaseSettings, SslMode};

/// Makes TLS sessions with the checks that the settings require.
pub type TlsConnector = MakeRustlsConnect;

/// Builds a [`TlsConnector`].
///
/// # Errors
/// Returns an error if the file of the CA cannot be used.
pub fn tls_connector(settings: &DatabaseSettings) -> anyhow::Result<TlsConnector> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = server_verifier(settings, &provider)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("cannot set up TLS")?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

fn server_verifier(
    settings: &DatabaseSettings,
    provider: &Arc<CryptoProvider>,
) -> anyhow::Result<Arc<dyn ServerCertVerifier>> {
    let algorithms = provider.signature_verification_algorithms;
    let roots = || root_certificates(settings);
    Ok(match (settings.sslmode, &settings.sslrootcert) {
        (SslMode::VerifyFull, _) => {
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots()?), Arc::clone(provider))
                .build()?
        }
        (SslMode::VerifyCa, _) | (SslMode::Require, Some(_)) => Arc::new(CertificateCheck {
            algorithms,
            roots: Some(roots()?),
        }),
        (SslMode::Disable | SslMode::Prefer | SslMode::Require, _) => Arc::new(CertificateCheck {
            algorithms,
            roots: None,
        }),
    })
}

fn root_certificates(settings: &DatabaseSettings) -> anyhow::Result<RootCertStore> {
    let path = settings
        .sslrootcert
        .as_deref()
        .context("DB_SSLROOTCERT is not set")?;
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path)
        .with_context(|| format!("DB_SSLROOTCERT: cannot read {}", path.display()))?;
    for certificate in certificates {
        let certificate = certificate
            .with_context(|| format!("DB_SSLROOTCERT: {} is not PEM", path.display()))?;
        roots.add(certificate).with_context(|| {
            format!(
                "DB_SSLROOTCERT: {} has an unusable certificate",
                path.display()
            )
        })?;
    }
    if roots.is_empty() {
        bail!("DB_SSLROOTCERT: {} has no certificate", path.display());
    }
    Ok(roots)
}

/// Checks the chain of certificates if there are `roots`, and never checks the host name.
#[derive(Debug)]
struct CertificateCheck {
    algorithms: WebPkiSupportedAlgorithms,
    roots: Option<RootCertStore>,
}

impl ServerCertVerifier for CertificateCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.algorithms.all;
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &certificate,
                roots,
                intermediates,
                now,
                algorithms,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
