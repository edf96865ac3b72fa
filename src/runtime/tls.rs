//! The cryptography of TLS: one provider for the whole process.

/// Makes aws-lc-rs the provider of every rustls configuration of this process.
/// To be called first thing in `main`; more calls change nothing.
pub fn install_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails only if another thread was faster, with the same provider.
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    }
}
