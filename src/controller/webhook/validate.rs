//! Validate: from what was gathered to what can be worked with. Pure.
//!
//! The endpoint is told apart from the problems: a Webhook whose header Secret
//! is missing still has an endpoint, and whether that changed must be seen.

use std::time::Duration;

use url::Url;

use super::gather::Gathered;
use crate::{
    api::{
        DeliveryPoolSpec, Problem, Reason, WebhookSpec,
        defaults::VERIFICATION_FAIL_AFTER,
        webhook::{ChallengeHttpMethod, Scheme, VerificationMethod},
    },
    policy::egress::{HeaderRefusal, check_header, check_headers},
    runtime::secret::SecretString,
    secrets::Material,
    verify::challenge::Handshake,
    wire::probe::ProbeTarget,
};

/// A Webhook that was looked at from all sides.
pub struct Validated<'a> {
    /// Where the endpoint is; none if that cannot be known now.
    pub maybe_endpoint: Option<Endpoint>,
    /// What keeps the Webhook from being checked and used.
    pub maybe_problem: Option<Problem>,
    /// The values of its Secrets; none if a Secret is the problem.
    pub maybe_material: Option<&'a Material>,
    /// The handshake.
    pub method: VerificationMethod,
    /// HTTP method of the challenge.
    pub http_method: ChallengeHttpMethod,
    /// Time between two checks.
    pub interval: Duration,
    /// Time for one check.
    pub timeout: Duration,
    /// How long a Pending endpoint may give no right answer.
    pub fail_after: Duration,
}

/// Where an endpoint is.
#[derive(Clone)]
pub struct Endpoint {
    /// In full, for the fingerprint. May be a secret.
    pub identity: SecretString,
    /// Scheme and host, for everybody.
    pub shown: String,
    /// Its scheme.
    pub scheme: Scheme,
    /// For the pod.
    pub target: ProbeTarget,
}

/// Looks at a Webhook from all sides.
pub fn validate(gathered: &Gathered) -> Validated<'_> {
    let spec = &gathered.webhook.spec;
    let pool = gathered.maybe_pool.as_deref();
    let reading = &gathered.reading;
    let endpoint = endpoint(spec, &gathered.key.namespace, reading.url.as_ref());
    let (maybe_endpoint, endpoint_problem) = match endpoint {
        Ok(endpoint) => (endpoint, None),
        Err(problem) => (None, Some(problem)),
    };
    let (maybe_material, secret_problem) = match &reading.material {
        Ok(material) => (Some(material), None),
        Err(problem) => (None, Some(problem.clone())),
    };
    let method = spec.effective_method();
    let fail_after = pool.and_then(|pool| pool.verification.as_ref()).and_then(|v| v.fail_after);
    Validated {
        maybe_problem: pool_problem(gathered)
            .or_else(|| method_problem(pool, method))
            .or(endpoint_problem)
            .or(secret_problem)
            .or_else(|| header_problem(spec, maybe_material?))
            .or_else(|| http_problem(pool, maybe_endpoint.as_ref()?, spec, maybe_material?)),
        maybe_endpoint,
        maybe_material,
        method,
        http_method: spec.effective_http_method(),
        interval: spec.effective_interval().as_std(),
        timeout: spec.effective_verification_timeout().as_std(),
        fail_after: fail_after.unwrap_or(VERIFICATION_FAIL_AFTER).as_std(),
    }
}

fn pool_problem(gathered: &Gathered) -> Option<Problem> {
    gathered.maybe_pool.is_none().then(|| {
        let pool = &gathered.pool_name;
        Problem::new(
            Reason::PoolNotFound,
            format!(
                "DeliveryPool {pool} does not exist. Correct the label posthorn.dev/pool of the namespace, or have the pool made."
            ),
        )
    })
}

fn method_problem(pool: Option<&DeliveryPoolSpec>, method: VerificationMethod) -> Option<Problem> {
    let allowed = pool?.verification.as_ref()?.methods.as_ref()?;
    if allowed.contains(&method) {
        return None;
    }
    let names: Vec<_> = allowed.iter().map(|method| format!("{method:?}")).collect();
    let message = format!(
        "The DeliveryPool does not allow the verification method {method:?}. Set spec.verification.method to one of: {}.",
        names.join(", ")
    );
    Some(Problem::new(Reason::MethodNotAllowed, message))
}

/// The schema judges literal headers alone, and only where it is not written around.
fn header_problem(spec: &WebhookSpec, material: &Material) -> Option<Problem> {
    let literal = || spec.headers.iter().map(|header| (header.name.as_str(), header.value.as_str()));
    let from_secrets = || material.headers.iter().map(|(name, value)| (name.as_str(), value.expose()));
    let refusal = check_headers(literal().chain(from_secrets())).err()?;
    let is_bad = |(name, value): (&str, &str)| check_header(name, value).is_err();
    let field = match refusal {
        HeaderRefusal::TooMany | HeaderRefusal::TooLong => None,
        _ => (literal().position(is_bad).map(|at| format!("spec.headers[{at}]")))
            .or_else(|| from_secrets().position(is_bad).map(|at| format!("spec.headersFrom[{at}]"))),
    };
    let field = field.unwrap_or_else(|| "spec.headers and spec.headersFrom".to_owned());
    Some(Problem::new(Reason::InvalidHeader, format!("{field} cannot be sent: {refusal}.")))
}

/// A handshake that sends a secret must not send it in the clear.
fn http_problem(
    pool: Option<&DeliveryPoolSpec>,
    endpoint: &Endpoint,
    spec: &WebhookSpec,
    material: &Material,
) -> Option<Problem> {
    let allows_http = pool
        .and_then(|pool| pool.egress.as_ref()?.schemes.as_ref())
        .is_some_and(|schemes| schemes.contains(&Scheme::Http));
    if endpoint.scheme == Scheme::Https || allows_http {
        return None;
    }
    let handshake = Handshake {
        dialect: spec.effective_dialect(),
        method: spec.effective_method(),
        http_method: spec.effective_http_method(),
        challenge: "",
        keys: &material.keys,
        message_id: "",
        now: k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
        origin: "",
    };
    let is_url = matches!(endpoint.target, ProbeTarget::Url(_));
    let sends_secret = handshake.sends_secret() || !material.headers.is_empty();
    (is_url || sends_secret).then(|| {
        let message = if is_url {
            "The URL is http, and the DeliveryPool does not allow http. Use https, or ask the admins of the pool to allow http."
        } else {
            "The handshake or a header sends a secret, and the Service is called by http, which the DeliveryPool does not allow. Set serviceRef.scheme to https, or ask the admins of the pool to allow http."
        };
        Problem::new(Reason::HttpNotAllowed, message.to_owned())
    })
}

fn endpoint(
    spec: &WebhookSpec,
    namespace: &str,
    secret_url: Option<&SecretString>,
) -> Result<Option<Endpoint>, Problem> {
    if let Some(service) = &spec.service_ref {
        let port = u16::try_from(service.port).map_err(|_| {
            Problem::new(Reason::InvalidSpec, "spec.serviceRef.port must be from 1 to 65535.".to_owned())
        })?;
        let scheme = service.effective_scheme();
        return Ok(Some(Endpoint {
            identity: SecretString::new(service.identity()),
            shown: format!("{}://{}.{namespace}.svc", scheme.as_str(), service.name),
            scheme,
            target: ProbeTarget::Service {
                name: service.name.clone(),
                port,
                path: service.effective_path().to_owned(),
                scheme,
            },
        }));
    }
    let (text, field) = match (&spec.url, secret_url) {
        (Some(url), _) => (SecretString::from(url.as_str()), "spec.url"),
        (None, Some(url)) => (url.clone(), "The URL in the Secret of spec.urlFrom"),
        (None, None) if spec.url_from.is_some() => return Ok(None),
        (None, None) => {
            let message = "Set exactly one of spec.url, spec.urlFrom and spec.serviceRef.";
            return Err(Problem::new(Reason::InvalidSpec, message.to_owned()));
        }
    };
    let (scheme, host) = scheme_and_host(text.expose()).ok_or_else(|| {
        let message = format!("{field} must be an absolute https URL without user name, password and fragment.");
        Problem::new(Reason::InvalidUrl, message)
    })?;
    let shown = format!("{}://{host}", scheme.as_str());
    Ok(Some(Endpoint { target: ProbeTarget::Url(text.clone()), identity: text, shown, scheme }))
}

fn scheme_and_host(text: &str) -> Option<(Scheme, String)> {
    let url = Url::parse(text).ok()?;
    let scheme = match url.scheme() {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        _ => return None,
    };
    let is_plain = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    let host = url.host_str().filter(|host| !host.is_empty())?;
    is_plain.then(|| (scheme, host.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        dialect::SigningKeys,
        policy::egress::header::{HEADER_BYTES_MAX, HEADERS_MAX},
    };

    /// What is said of these headers: literal ones, and those from Secrets.
    fn told(literal: &[(&str, &str)], from_secrets: &[(&str, &str)]) -> Option<String> {
        let headers: Vec<_> = literal.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        let spec = serde_json::from_value(json!({ "url": "https://a.example/", "headers": headers })).unwrap();
        let headers =
            from_secrets.iter().map(|(name, value)| ((*name).to_owned(), SecretString::from(*value))).collect();
        let material = Material { keys: SigningKeys::none(), url: None, headers, tls: None };
        let Problem { reason, message } = header_problem(&spec, &material)?;
        assert_eq!(reason, Reason::InvalidHeader);
        Some(message)
    }

    #[test]
    fn a_header_that_must_not_be_sent_is_refused_wherever_it_comes_from() {
        let good = [("x-a", "1"), ("Authorization", "Bearer x")];
        assert_eq!(told(&good, &good), None);
        let check = |message: Option<String>, start: &str| {
            let message = message.unwrap();
            assert!(message.starts_with(start) && !message.contains("hunter2"), "{message}");
        };
        let reserved = ("Webhook-Signature", "hunter2");
        check(told(&[good[0], reserved], &[]), "spec.headers[1] cannot be sent: the header webhook-signature is");
        check(told(&good, &[reserved]), "spec.headersFrom[0] cannot be sent: the header webhook-signature is");
        check(told(&[], &[good[0], ("x-b", "hunter2\r\nx: y")]), "spec.headersFrom[1] cannot be sent: the value of");
    }

    #[test]
    fn literal_headers_and_those_from_secrets_share_one_limit() {
        let many = vec![("x-a", "1"); HEADERS_MAX];
        assert_eq!(told(&many[1..], &many[..1]), None);
        let both = "spec.headers and spec.headersFrom cannot be sent: ";
        assert_eq!(told(&many, &many[..1]).unwrap(), format!("{both}more than {HEADERS_MAX} headers."));
        let half = "v".repeat(HEADER_BYTES_MAX / 2 - 3);
        assert_eq!(told(&[("x-a", &half)], &[("x-b", &half)]), None);
        let message = told(&[("x-a", &half)], &[("x-bc", &half)]).unwrap();
        assert!(message.starts_with(both) && message.contains("longer"), "{message}");
    }
}
