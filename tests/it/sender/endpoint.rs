//! An endpoint on loopback that notes every connection and every byte.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

/// What a connection begins with that the test itself opens.
const SENTINEL: &[u8] = b"SENTINEL";

/// A request, byte for byte.
#[derive(Clone, Debug)]
pub(super) struct Received {
    /// Which connection brought it, in the order of their opening.
    pub(super) connection: usize,
    pub(super) line: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Received {
    /// The value of a header that is there at most once.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} is there twice");
        value
    }
}

/// Told instead of a number of requests.
const FLOOD_BROKE: usize = usize::MAX;

/// What the endpoint says to a request.
pub(super) enum Reply {
    /// These bytes; then it waits for the next request.
    Bytes(Vec<u8>),
    /// These bytes; then it closes the connection.
    Close(Vec<u8>),
    /// Nothing for ever.
    Hang,
    /// These bytes, then those again and again, until nobody takes them.
    Flood(Vec<u8>, Vec<u8>),
}

/// An answer with a body.
pub(super) fn answer(code: u16, headers: &str, body: &str) -> Reply {
    Reply::Bytes(format!("HTTP/1.1 {code} X\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()).into())
}

#[derive(Default)]
struct Notes {
    connections: usize,
    /// Connections of which bytes were read that were not the sentinel.
    spoken: usize,
    requests: Vec<Received>,
    /// Bytes that a flood brought out.
    flooded: usize,
}

/// Serves until the test ends.
#[derive(Clone)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    notes: Arc<Mutex<Notes>>,
    changes: watch::Receiver<usize>,
}

impl Endpoint {
    /// Answers every request with this.
    pub(super) async fn new(reply: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(None, reply).await
    }

    /// The same over TLS.
    pub(super) async fn tls(config: ServerConfig, reply: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(Some(TlsAcceptor::from(Arc::new(config))), reply).await
    }

    async fn listen(tls: Option<TlsAcceptor>, reply: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let notes: Arc<Mutex<Notes>> = Arc::default();
        let (changed, changes) = watch::channel(0);
        let (reply, changed) = (Arc::new(reply), Arc::new(changed));
        let endpoint = Self { address, notes: Arc::clone(&notes), changes };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = {
                    let mut notes = notes.lock().unwrap();
                    notes.connections += 1;
                    notes.connections
                };
                let (tls, notes, reply, changed) =
                    (tls.clone(), Arc::clone(&notes), Arc::clone(&reply), Arc::clone(&changed));
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, number, notes, reply, changed).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, number, notes, reply, changed).await;
                            }
                        }
                    }
                });
            }
        });
        endpoint
    }

    /// Answers every request with a status code.
    pub(super) async fn code(code: u16) -> Self {
        Self::new(move |_| answer(code, "", "")).await
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(super) fn requests(&self) -> Vec<Received> {
        self.notes.lock().unwrap().requests.clone()
    }

    /// The only request.
    pub(super) fn request(&self) -> Received {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }

    /// Until nobody takes the bytes of a flood any more: how many were taken.
    pub(super) async fn until_flood_broke(&self) -> usize {
        self.until_requests(FLOOD_BROKE).await;
        self.notes.lock().unwrap().flooded
    }

    /// Until so many requests were read.
    pub(super) async fn until_requests(&self, count: usize) {
        self.changes.clone().wait_for(|seen| *seen >= count).await.unwrap();
    }

    /// Connections so far. One of our own comes last, so that none that was
    /// opened before can still be in the queue of the listener.
    pub(super) async fn connections(&self) -> usize {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(SENTINEL).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, SENTINEL);
        let mut notes = self.notes.lock().unwrap();
        notes.connections -= 1;
        notes.connections
    }

    /// Nobody connected, not even without a word.
    pub(super) async fn check_silence(&self) {
        assert_eq!(self.connections().await, 0, "somebody connected");
        assert_eq!(self.notes.lock().unwrap().spoken, 0);
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    connection: usize,
    notes: Arc<Mutex<Notes>>,
    reply: Arc<impl Fn(&Received) -> Reply>,
    changed: Arc<watch::Sender<usize>>,
) {
    let mut buffer = Vec::new();
    loop {
        let Some(request) = read(&mut stream, &mut buffer, connection).await else {
            if buffer == SENTINEL {
                stream.write_all(SENTINEL).await.ok();
            }
            return;
        };
        let (says, count) = {
            let mut notes = notes.lock().unwrap();
            notes.spoken = connection;
            notes.requests.push(request);
            (reply(&notes.requests[notes.requests.len() - 1]), notes.requests.len())
        };
        changed.send_replace(count);
        match says {
            Reply::Bytes(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Reply::Close(bytes) => {
                stream.write_all(&bytes).await.ok();
                return;
            }
            Reply::Hang => std::future::pending().await,
            Reply::Flood(head, rest) => {
                stream.write_all(&head).await.ok();
                while stream.write_all(&rest).await.is_ok() {
                    notes.lock().unwrap().flooded += rest.len();
                }
                changed.send_replace(FLOOD_BROKE);
                return;
            }
        }
    }
}

/// The next request; none if the connection ended or is the test's own.
async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>, connection: usize) -> Option<Received> {
    let head_end = loop {
        if buffer.as_slice() == SENTINEL {
            return None;
        }
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(buffer).await.unwrap_or(0) == 0 {
            return None;
        }
    };
    let head = std::str::from_utf8(&buffer[..head_end]).unwrap().to_owned();
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap().to_owned();
    let split = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_owned(), value.to_owned())
    };
    let headers: Vec<_> = lines.map(split).collect();
    let length =
        headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, value)| value.parse().unwrap());
    let end = head_end + 4 + length;
    while buffer.len() < end {
        if stream.read_buf(buffer).await.unwrap_or(0) == 0 {
            return None;
        }
    }
    let rest = buffer.split_off(end);
    let body = buffer[head_end + 4..].to_vec();
    *buffer = rest;
    Some(Received { connection, line, headers, body })
}
