//! A double of the API server: lists, watches, creates, patches and deletes
//! objects of any kind in memory; reviews every token that looks like one of
//! [`super::publisher::token`]; counts what is written; goes away on command.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use futures::stream;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// Objects of a kind by (namespace, name); the namespace is empty for kinds of
/// the whole cluster.
type Objects = BTreeMap<(String, String), Value>;

#[derive(Default)]
struct Content {
    /// By plural.
    kinds: BTreeMap<String, Objects>,
    /// What happened, in order: resource version, plural, type, object.
    log: Vec<(u64, String, &'static str, Value)>,
    version: u64,
    next_uid: u64,
}

struct Inner {
    content: Mutex<Content>,
    version: watch::Sender<u64>,
    /// Bumped to end every open watch.
    cuts: watch::Sender<u64>,
    is_away: AtomicBool,
    /// Kinds of which no list is given.
    lists_away: Mutex<BTreeSet<String>>,
    /// Creates, patches, updates and deletes by clients, not by the test itself.
    writes: AtomicU64,
    writes_by_kind: Mutex<BTreeMap<String, u64>>,
    reviews: AtomicU64,
}

/// The double. Clones are the same one.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
    address: SocketAddr,
    _task: Arc<AbortOnDrop>,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ApiServer {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            content: Mutex::default(),
            version: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
            is_away: AtomicBool::new(false),
            lists_away: Mutex::default(),
            writes: AtomicU64::new(0),
            writes_by_kind: Mutex::default(),
            reviews: AtomicU64::new(0),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let this = Self { inner, address, _task: Arc::new(AbortOnDrop(task)) };
        // Pods look whether the kind of their cards was removed.
        this.apply(
            "customresourcedefinitions",
            json!({"metadata": {"name": "deadletters.posthorn.dev", "creationTimestamp": "2026-01-01T00:00:00Z"}}),
        );
        this
    }

    /// Writes a kubeconfig that leads here.
    pub fn write_kubeconfig(&self, path: &Path) {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "rig",
            "clusters": [{"name": "rig", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "rig", "user": {}}],
            "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": "rig", "namespace": "posthorn-system"}}],
        });
        std::fs::write(path, config.to_string()).unwrap();
    }

    /// From now on nothing is answered but 503, and watches end; or all is well again.
    pub fn set_away(&self, is_away: bool) {
        self.inner.is_away.store(is_away, Ordering::SeqCst);
        self.inner.cuts.send_modify(|cut| *cut += 1);
    }

    /// From now on this kind is not listed; or it is again.
    pub fn set_list_away(&self, plural: &str, is_away: bool) {
        let mut away = self.inner.lists_away.lock().unwrap();
        if is_away {
            away.insert(plural.to_owned());
        } else {
            away.remove(plural);
        }
    }

    /// Creates or replaces an object as somebody else would.
    pub fn apply(&self, plural: &str, mut object: Value) -> Value {
        let mut content = self.inner.content.lock().unwrap();
        let key = key_of(&object);
        let old = content.kinds.entry(plural.to_owned()).or_default().get(&key).cloned();
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        complete(&mut content, &mut object, old.as_ref());
        put(&mut content, plural, key, kind, object.clone());
        let version = content.version;
        drop(content);
        self.inner.version.send_replace(version);
        object
    }

    /// Many objects in one go, with one wake-up of the watches.
    pub fn apply_all(&self, plural: &str, objects: impl IntoIterator<Item = Value>) {
        let mut content = self.inner.content.lock().unwrap();
        for mut object in objects {
            let key = key_of(&object);
            let old = content.kinds.entry(plural.to_owned()).or_default().get(&key).cloned();
            let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
            complete(&mut content, &mut object, old.as_ref());
            put(&mut content, plural, key, kind, object);
        }
        let version = content.version;
        drop(content);
        self.inner.version.send_replace(version);
    }

    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        delete(&self.inner, plural, &(namespace.to_owned(), name.to_owned()));
    }

    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let content = self.inner.content.lock().unwrap();
        content.kinds.get(plural)?.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    pub fn list(&self, plural: &str) -> Vec<Value> {
        let content = self.inner.content.lock().unwrap();
        content.kinds.get(plural).map(|objects| objects.values().cloned().collect()).unwrap_or_default()
    }

    /// Writes by clients so far.
    pub fn writes(&self) -> u64 {
        self.inner.writes.load(Ordering::SeqCst)
    }

    pub fn writes_by_kind(&self) -> BTreeMap<String, u64> {
        self.inner.writes_by_kind.lock().unwrap().clone()
    }

    pub fn token_reviews(&self) -> u64 {
        self.inner.reviews.load(Ordering::SeqCst)
    }
}

fn key_of(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// What the API server fills in: UID, generation, creation time.
fn complete(content: &mut Content, object: &mut Value, old: Option<&Value>) {
    let spec_changed = old.is_none_or(|old| old["spec"] != object["spec"]);
    let generation = old.and_then(|old| old["metadata"]["generation"].as_i64()).unwrap_or(0);
    let old_of = |field: &str| old.map(|old| old["metadata"][field].clone()).filter(|value| !value.is_null());
    if object["metadata"]["uid"].is_null() {
        content.next_uid += 1;
        let fresh = json!(format!("00000000-0000-4000-8000-{:012x}", content.next_uid));
        object["metadata"]["uid"] = old_of("uid").unwrap_or(fresh);
    }
    if object["metadata"]["generation"].is_null() {
        object["metadata"]["generation"] = json!(generation + i64::from(spec_changed));
    }
    if object["metadata"]["creationTimestamp"].is_null() {
        let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        object["metadata"]["creationTimestamp"] = old_of("creationTimestamp").unwrap_or(json!(now));
    }
}

fn put(content: &mut Content, plural: &str, key: (String, String), kind: &'static str, mut object: Value) {
    content.version += 1;
    object["metadata"]["resourceVersion"] = json!(content.version.to_string());
    content.kinds.entry(plural.to_owned()).or_default().insert(key, object.clone());
    content.log.push((content.version, plural.to_owned(), kind, object));
}

fn delete(inner: &Inner, plural: &str, key: &(String, String)) -> Option<Value> {
    let mut content = inner.content.lock().unwrap();
    let mut object = content.kinds.get_mut(plural)?.remove(key)?;
    content.version += 1;
    object["metadata"]["resourceVersion"] = json!(content.version.to_string());
    let version = content.version;
    content.log.push((version, plural.to_owned(), "DELETED", object.clone()));
    drop(content);
    inner.version.send_replace(version);
    Some(object)
}

/// A path of the API: group and version do not matter here, plurals are unique.
struct Target {
    namespace: String,
    plural: String,
    name: Option<String>,
    subresource: Option<String>,
}

fn parse(path: &str) -> Option<Target> {
    let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    parts.drain(..if parts.first() == Some(&"api") { 2 } else { 3 }.min(parts.len()));
    // "namespaces/x" is an object, "namespaces/x/webhooks" a folder.
    let namespace = if parts.len() > 2 && parts[0] == "namespaces" {
        let namespace = parts[1].to_owned();
        parts.drain(..2);
        namespace
    } else {
        String::new()
    };
    let mut parts = parts.into_iter().map(str::to_owned);
    Some(Target { namespace, plural: parts.next()?, name: parts.next(), subresource: parts.next() })
}

async fn answer(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    if inner.is_away.load(Ordering::SeqCst) {
        return failure(StatusCode::SERVICE_UNAVAILABLE, "away");
    }
    let (head, body) = request.into_parts();
    let Some(target) = parse(head.uri.path()) else { return failure(StatusCode::NOT_FOUND, "no such path") };
    let query = head.uri.query().unwrap_or_default().to_owned();
    let body = axum::body::to_bytes(body, 16 << 20).await.unwrap_or_default();
    match head.method {
        Method::GET if query.contains("watch=") => watch_stream(&inner, &target, &query),
        Method::GET => read(&inner, &target, &query),
        Method::POST => create(&inner, &target, &body),
        Method::PATCH | Method::PUT => change(&inner, &target, &body),
        Method::DELETE => {
            count(&inner, &target.plural);
            let name = target.name.unwrap_or_default();
            match delete(&inner, &target.plural, &(target.namespace, name)) {
                Some(object) => axum::Json(object).into_response(),
                None => failure(StatusCode::NOT_FOUND, "NotFound"),
            }
        }
        _ => failure(StatusCode::METHOD_NOT_ALLOWED, "no such method"),
    }
}

fn count(inner: &Inner, plural: &str) {
    inner.writes.fetch_add(1, Ordering::SeqCst);
    *inner.writes_by_kind.lock().unwrap().entry(plural.to_owned()).or_default() += 1;
}

fn failure(code: StatusCode, message: &str) -> Response {
    let reason = match code {
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::CONFLICT => "AlreadyExists",
        _ => "ServiceUnavailable",
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16()});
    (code, axum::Json(status)).into_response()
}

fn field_name(query: &str) -> Option<String> {
    let selector = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "fieldSelector")?.1;
    Some(selector.strip_prefix("metadata.name=")?.to_owned())
}

fn read(inner: &Inner, target: &Target, query: &str) -> Response {
    let content = inner.content.lock().unwrap();
    let objects = content.kinds.get(&target.plural);
    if let Some(name) = &target.name {
        let key = (target.namespace.clone(), name.clone());
        return match objects.and_then(|objects| objects.get(&key)) {
            Some(object) => axum::Json(object.clone()).into_response(),
            None => failure(StatusCode::NOT_FOUND, "NotFound"),
        };
    }
    if inner.lists_away.lock().unwrap().contains(&target.plural) {
        return failure(StatusCode::SERVICE_UNAVAILABLE, "away");
    }
    let wanted = field_name(query);
    let items: Vec<&Value> = objects
        .into_iter()
        .flatten()
        .filter(|((namespace, name), _)| {
            (target.namespace.is_empty() || *namespace == target.namespace)
                && wanted.as_ref().is_none_or(|wanted| wanted == name)
        })
        .map(|(_, object)| object)
        .collect();
    let list = json!({"kind": "List", "apiVersion": "v1",
        "metadata": {"resourceVersion": content.version.to_string()}, "items": items});
    axum::Json(list).into_response()
}

fn watch_stream(inner: &Arc<Inner>, target: &Target, query: &str) -> Response {
    let from = url::form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == "resourceVersion")
        .and_then(|(_, version)| version.parse::<u64>().ok())
        .unwrap_or(0);
    let wanted = field_name(query);
    let (plural, namespace) = (target.plural.clone(), target.namespace.clone());
    let state = (from, inner.version.subscribe(), inner.cuts.subscribe(), Arc::clone(inner));
    let events = stream::unfold(state, move |(mut from, mut versions, mut cuts, inner)| {
        let (plural, namespace, wanted) = (plural.clone(), namespace.clone(), wanted.clone());
        async move {
            loop {
                versions.mark_unchanged();
                let (lines, last) = lines_after(&inner, from, &plural, &namespace, wanted.as_deref());
                if !lines.is_empty() {
                    return Some((Ok::<_, Infallible>(Bytes::from(lines)), (last, versions, cuts, inner)));
                }
                from = last;
                tokio::select! {
                    changed = versions.changed() => changed.ok()?,
                    _cut = cuts.changed() => return None,
                }
            }
        }
    });
    Response::builder().header("content-type", "application/json").body(Body::from_stream(events)).unwrap()
}

fn lines_after(inner: &Inner, from: u64, plural: &str, namespace: &str, wanted: Option<&str>) -> (Vec<u8>, u64) {
    let content = inner.content.lock().unwrap();
    let start = content.log.partition_point(|(version, ..)| *version <= from);
    let mut lines = Vec::new();
    let mut last = from;
    for (version, of, kind, object) in &content.log[start..] {
        last = *version;
        let (object_namespace, name) = key_of(object);
        let fits = of == plural
            && (namespace.is_empty() || object_namespace == namespace)
            && wanted.is_none_or(|wanted| wanted == name);
        if fits {
            serde_json::to_writer(&mut lines, &json!({"type": kind, "object": object})).unwrap();
            lines.push(b'\n');
        }
    }
    (lines, last)
}

fn create(inner: &Inner, target: &Target, body: &[u8]) -> Response {
    let Ok(mut object) = serde_json::from_slice::<Value>(body) else {
        return failure(StatusCode::BAD_REQUEST, "no JSON");
    };
    match target.plural.as_str() {
        "tokenreviews" => {
            inner.reviews.fetch_add(1, Ordering::SeqCst);
            object["status"] = review(&object["spec"]);
            return (StatusCode::CREATED, axum::Json(object)).into_response();
        }
        "subjectaccessreviews" => {
            object["status"] = json!({"allowed": true});
            return (StatusCode::CREATED, axum::Json(object)).into_response();
        }
        _ => {}
    }
    count(inner, &target.plural);
    if object["metadata"]["namespace"].is_null() && !target.namespace.is_empty() {
        object["metadata"]["namespace"] = json!(target.namespace);
    }
    let mut content = inner.content.lock().unwrap();
    let key = key_of(&object);
    if content.kinds.get(&target.plural).is_some_and(|objects| objects.contains_key(&key)) {
        return failure(StatusCode::CONFLICT, "AlreadyExists");
    }
    complete(&mut content, &mut object, None);
    put(&mut content, &target.plural, key.clone(), "ADDED", object);
    let object = content.kinds[&target.plural][&key].clone();
    let version = content.version;
    drop(content);
    inner.version.send_replace(version);
    (StatusCode::CREATED, axum::Json(object)).into_response()
}

/// Believes what the token says of itself: its subject and its audiences.
fn review(spec: &Value) -> Value {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
    let claims = spec["token"]
        .as_str()
        .and_then(|token| token.split('.').nth(1))
        .and_then(|part| BASE64_URL_SAFE_NO_PAD.decode(part).ok())
        .and_then(|json| serde_json::from_slice::<Value>(&json).ok());
    match claims {
        Some(claims) => json!({"authenticated": true, "audiences": spec["audiences"],
            "user": {"username": claims["sub"], "uid": "1", "groups": ["system:serviceaccounts"]}}),
        None => json!({"authenticated": false}),
    }
}

/// A merge patch (RFC 7396), a server-side apply or an update: all are merged.
fn change(inner: &Inner, target: &Target, body: &[u8]) -> Response {
    count(inner, &target.plural);
    // JSON is YAML, and server-side apply sends JSON.
    let Ok(patch) = serde_json::from_slice::<Value>(body) else { return failure(StatusCode::BAD_REQUEST, "no JSON") };
    let mut content = inner.content.lock().unwrap();
    let key = (target.namespace.clone(), target.name.clone().unwrap_or_default());
    let old = content.kinds.get(&target.plural).and_then(|objects| objects.get(&key)).cloned();
    let mut object = match &old {
        Some(old) => old.clone(),
        None if target.subresource.is_none() => json!({"metadata": {"name": key.1, "namespace": key.0}}),
        None => return failure(StatusCode::NOT_FOUND, "NotFound"),
    };
    if patch.is_array() {
        let Ok(patch) = serde_json::from_value::<json_patch::Patch>(patch) else {
            return failure(StatusCode::BAD_REQUEST, "no patch");
        };
        if json_patch::patch(&mut object, &patch).is_err() {
            return failure(StatusCode::UNPROCESSABLE_ENTITY, "the patch does not fit");
        }
    } else {
        json_patch::merge(&mut object, &patch);
    }
    object["metadata"]["generation"] = Value::Null;
    complete(&mut content, &mut object, old.as_ref());
    put(&mut content, &target.plural, key.clone(), if old.is_some() { "MODIFIED" } else { "ADDED" }, object);
    let object = content.kinds[&target.plural][&key].clone();
    let version = content.version;
    drop(content);
    inner.version.send_replace(version);
    axum::Json(object).into_response()
}
