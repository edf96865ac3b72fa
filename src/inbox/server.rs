//! The server of the inbox: connections, misbehaviour, the journal.
//!
//! It has a loop of its own, beside the one of the other roles: to close a
//! connection instead of answering takes a service that may fail.

use std::{convert::Infallible, io::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    Config,
    behavior::{Behavior, HOLD_MAX},
    journal::{self, Journal, Record},
    receiver::{self, Received, Reply},
};
use crate::runtime::clock;

/// Connections at a time; more wait in the system's queue.
const CONNECTIONS_MAX: usize = 512;
/// Bytes of a request's body.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Time for a TLS handshake, for the headers, and for the body of a request.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for requests under way to end after the shutdown began.
const GRACE: Duration = Duration::from_secs(1);
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The first piece of an endless body: more than any reader of ours takes.
const ENDLESS_FIRST_BYTES: usize = 64 * 1024;
/// The pause between later pieces of an endless body.
const ENDLESS_PAUSE: Duration = Duration::from_millis(100);
/// Headers whose values hold no secret; of all others only the name is kept.
const HEADERS_SHOWN: [&str; 13] = [
    "content-type",
    "content-length",
    "user-agent",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "webhook-request-origin",
    "x-improvado-idempotency-key",
    "x-improvado-signature",
    "x-webhook-signature",
    "impira-signature",
    "ce-id",
    "ce-type",
];

type Body = BoxBody<Bytes, Infallible>;

/// The request gets no answer; hyper closes the connection.
#[derive(Debug, thiserror::Error)]
#[error("the connection is dropped, as the path asked for")]
struct Dropped;

struct Inbox {
    config: Config,
    journal: Journal,
    shutdown: CancellationToken,
}

pub(super) async fn serve(config: Config, listener: TcpListener, shutdown: CancellationToken) {
    let tls = config.tls.clone().map(TlsAcceptor::from);
    let inbox = Arc::new(Inbox { config, journal: Journal::default(), shutdown: shutdown.clone() });
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let accept = async { (Arc::clone(&permits).acquire_owned().await, listener.accept().await) };
        let (permit, accepted) = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            both = accept => both,
        };
        let Ok((stream, _peer)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (inbox, tls) = (Arc::clone(&inbox), tls.clone());
        connections.spawn(async move {
            let _permit = permit;
            serve_stream(inbox, tls, stream).await;
        });
    }
    drop(listener);
    // What does not end within the grace is cut off with the set.
    timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await.ok();
}

async fn serve_stream(inbox: Arc<Inbox>, tls: Option<TlsAcceptor>, stream: TcpStream) {
    stream.set_nodelay(true).ok();
    match tls {
        None => serve_connection(inbox, stream).await,
        Some(acceptor) => {
            if let Ok(Ok(stream)) = timeout(READ_TIMEOUT, acceptor.accept(stream)).await {
                serve_connection(inbox, stream).await;
            }
        }
    }
}

async fn serve_connection(inbox: Arc<Inbox>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let shutdown = inbox.shutdown.clone();
    let service = service_fn(move |request| handle(Arc::clone(&inbox), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // How a connection of a test receiver ends is the other side's business.
    tokio::select! {
        ended = connection.as_mut() => ended.ok(),
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await.ok()
        }
    };
}

async fn handle(inbox: Arc<Inbox>, request: Request<Incoming>) -> Result<Response<Body>, Dropped> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let behavior = Behavior::of(&path);
    match behavior {
        Behavior::Health => return Ok(response(Reply::text(StatusCode::OK, "ok\n", ""))),
        Behavior::Requests if parts.method == Method::GET => return Ok(response(requests(&inbox.journal))),
        _ => {}
    }
    let note = |what: &str, status: Option<u16>, body: &str| {
        inbox.note(Record {
            time: clock::now().to_string(),
            method: parts.method.to_string(),
            path: journal::cut(&path, journal::PATH_BYTES_MAX).to_owned(),
            what: what.to_owned(),
            status,
            headers: shown(&parts.headers),
            body: journal::cut(body, journal::BODY_BYTES_MAX).to_owned(),
        });
    };
    match behavior {
        Behavior::Slow(wait) => inbox.hold(wait).await,
        Behavior::Drop => {
            note("dropped, as the path asks for", None, "");
            return Err(Dropped);
        }
        Behavior::Hang => {
            note("left without an answer, as the path asks for", None, "");
            inbox.hold(HOLD_MAX).await;
            return Err(Dropped);
        }
        Behavior::Endless => {
            note("answered without end, as the path asks for", Some(200), "");
            return Ok(Response::new(endless(inbox.shutdown.clone())));
        }
        _ => {}
    }
    let Some(body) = read(body).await else {
        note("refused: the body is too long or too slow", Some(413), "");
        return Ok(response(Reply::empty(StatusCode::PAYLOAD_TOO_LARGE, "")));
    };
    let reply = inbox.reply(behavior, &path, &Received { method: &parts.method, headers: &parts.headers, body: &body });
    let is_event = reply.what.starts_with("event");
    let shown_body = if is_event { String::from_utf8_lossy(&body) } else { "".into() };
    note(&reply.what, Some(reply.status.as_u16()), &shown_body);
    Ok(response(reply))
}

impl Inbox {
    fn reply(&self, behavior: Behavior, path: &str, request: &Received<'_>) -> Reply {
        match behavior {
            Behavior::Wrong => wrong(request),
            Behavior::Status(code) => {
                let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                Reply::empty(status, "answered with this status, as the path asks for")
            }
            Behavior::Redirect => {
                let mut reply = Reply::empty(StatusCode::FOUND, "redirected, as the path asks for");
                reply.headers.push(("location", "/".to_owned()));
                reply
            }
            Behavior::Flaky(failures) => {
                let count = self.journal.count(path);
                if count <= failures {
                    let what = format!("failed, {count} of {failures}, as the path asks for");
                    return Reply::empty(StatusCode::SERVICE_UNAVAILABLE, what);
                }
                receiver::answer(self.config.secret.as_ref(), request, clock::now())
            }
            _ => receiver::answer(self.config.secret.as_ref(), request, clock::now()),
        }
    }

    fn note(&self, record: Record) {
        if self.config.print {
            let status = record.status.map_or_else(|| "-".to_owned(), |s| s.to_string());
            let line = format!("{} {} {} {status} {}\n", record.time, record.method, record.path, record.what);
            // Whoever reads the lines may be gone; the inbox goes on.
            std::io::stdout().lock().write_all(line.as_bytes()).ok();
        }
        self.journal.add(record);
    }

    async fn hold(&self, wait: Duration) {
        tokio::select! { () = sleep(wait) => {}, () = self.shutdown.cancelled() => {} }
    }
}

/// A success that is no answer to the handshake.
fn wrong(request: &Received<'_>) -> Reply {
    let what = "answered with another challenge, as the path asks for";
    if request.method == Method::OPTIONS {
        let mut reply = Reply::empty(StatusCode::OK, what);
        reply.headers.push(("webhook-allowed-origin", "another.example".to_owned()));
        return reply;
    }
    Reply::text(StatusCode::OK, "this-is-not-the-challenge-that-you-have-sent", what)
}

fn requests(journal: &Journal) -> Reply {
    Reply::json(StatusCode::OK, &serde_json::json!(journal.requests()), "")
}

async fn read(body: Incoming) -> Option<Bytes> {
    let collected = timeout(READ_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    Some(collected.ok()?.ok()?.to_bytes())
}

fn shown(headers: &HeaderMap) -> Vec<(String, String)> {
    let show = |(name, value): (&HeaderName, &HeaderValue)| {
        let known = HEADERS_SHOWN.contains(&name.as_str());
        let value = if known { String::from_utf8_lossy(value.as_bytes()).into_owned() } else { "[hidden]".to_owned() };
        let cut = |text: &str| journal::cut(text, journal::HEADER_BYTES_MAX).to_owned();
        (cut(name.as_str()), cut(&value))
    };
    headers.iter().take(journal::HEADERS_MAX).map(show).collect()
}

fn response(reply: Reply) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(reply.body)).boxed());
    *response.status_mut() = reply.status;
    for (name, value) in reply.headers {
        // A value that came from the request and is no header value is left out.
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn endless(shutdown: CancellationToken) -> Body {
    let pieces = stream::unfold((shutdown, ENDLESS_FIRST_BYTES), |(shutdown, bytes)| async move {
        if bytes < ENDLESS_FIRST_BYTES {
            tokio::select! { () = sleep(ENDLESS_PAUSE) => {}, () = shutdown.cancelled() => return None }
        }
        let piece = Frame::data(Bytes::from(vec![b'.'; bytes]));
        Some((Ok::<_, Infallible>(piece), (shutdown, 1024)))
    });
    BodyExt::boxed(StreamBody::new(pieces))
}
