//! The endpoint of a Webhook as one text: what a fingerprint binds, the same in
//! the controller that makes it and in the pod that checks it. Pure.

use super::webhook::{Scheme, ServiceRef};

/// Scheme of a `serviceRef` without one.
pub const SERVICE_SCHEME: Scheme = Scheme::Http;
/// Path of a `serviceRef` without one.
pub const SERVICE_PATH: &str = "/";

impl Scheme {
    /// The text in a URL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl ServiceRef {
    /// The scheme, or its default.
    pub fn effective_scheme(&self) -> Scheme {
        self.scheme.unwrap_or(SERVICE_SCHEME)
    }

    /// Path and query, or their default.
    pub fn effective_path(&self) -> &str {
        self.path.as_deref().unwrap_or(SERVICE_PATH)
    }

    /// The endpoint in full. No URL has the scheme `service`, so it is never
    /// taken for the one of a `url`.
    pub fn identity(&self) -> String {
        let (name, port) = (&self.name, self.port);
        format!("service:{}://{name}:{port}{}", self.effective_scheme().as_str(), self.effective_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_of_a_service_names_all_that_is_called() {
        let mut service = ServiceRef { name: "shop".into(), port: 8080, path: None, scheme: None };
        assert_eq!(service.identity(), "service:http://shop:8080/");
        service.path = Some("/hooks?x=1".into());
        service.scheme = Some(Scheme::Https);
        assert_eq!(service.identity(), "service:https://shop:8080/hooks?x=1");
    }
}
