//! Plain HTTP: what a bad endpoint can do, and what it costs.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use posthorn::{
    api::Reason,
    egress::{
        Budgets, EgressAnswer, EgressError, EgressRequest, Failure,
        client::{HEADER_BYTES_MAX, HEADERS_MAX},
    },
    policy::egress::{ClusterNetworks, EgressPolicy},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{AMPLE, SHORT, budgets, clients, destination, endpoint, listen, post, read_request, send};

fn check(result: Result<EgressAnswer, EgressError>, failure: Failure, reason: Reason) {
    let error = result.unwrap_err();
    assert_eq!((error.failure(), error.reason()), (failure, reason), "{error:?}");
    let message = error.message();
    assert!(!message.contains("hook") && !message.contains('!') && message.len() < 300, "{message}");
}

/// Writes a head, then these bytes again and again.
async fn flood(head: &'static str, bytes: &'static [u8], pause: Duration) -> SocketAddr {
    let (address, _) = listen(move |mut stream| async move {
        read_request(&mut stream).await;
        let mut result = stream.write_all(head.as_bytes()).await;
        while result.is_ok() {
            result = stream.write_all(bytes).await;
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
    })
    .await;
    address
}

#[tokio::test]
async fn an_answer_comes_back_with_status_headers_and_body() {
    let address = endpoint("HTTP/1.1 201 Created\r\ncontent-length: 5\r\nx-a: 1\r\nx-a: 2\r\n\r\nhello").await;
    let answer = send(address, AMPLE).await.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.body[..], answer.body_truncated), (201, &b"hello"[..], false));
    assert_eq!(answer.headers.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(format!("{answer:?}"), "EgressAnswer(201 Created 3 headers 5 bytes)");
}

#[tokio::test]
async fn the_request_says_who_sends_it_and_wants_no_compression() {
    let (sender, mut received) = mpsc::channel(1);
    let (address, _) = listen(move |mut stream| {
        let sender = sender.clone();
        async move {
            sender.send(read_request(&mut stream).await).await.unwrap();
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let to = destination(&format!("http://hooks.example.com:{}/a/b?c=d", address.port()));
    let request = EgressRequest::parse("POST", [("X-Key", "k")], "{\"a\":1}").unwrap();
    assert_eq!(format!("{request:?}"), "EgressRequest(POST 1 headers 7 bytes)");
    clients().client("shop", None).unwrap().send(&to, request, budgets(AMPLE)).await.unwrap();
    let text = received.recv().await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<_> = head.lines().collect();
    lines[1..].sort_unstable();
    let host = format!("host: hooks.example.com:{}", address.port());
    let agent = concat!("user-agent: posthorn/", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        lines,
        ["POST /a/b?c=d HTTP/1.1", "accept-encoding: identity", "content-length: 7", &host, agent, "x-key: k"]
    );
    assert_eq!(body, "{\"a\":1}");
}

#[tokio::test]
async fn headers_that_frame_the_message_cannot_be_given() {
    let to = destination("http://127.0.0.1:1/");
    for name in ["Host", "content-length", "transfer-encoding", "connection", "expect", "upgrade", "te", "trailer"] {
        let request = EgressRequest::parse("POST", [(name, "x")], "").unwrap();
        let result = clients().client("shop", None).unwrap().send(&to, request, budgets(AMPLE)).await;
        check(result, Failure::Header, Reason::InvalidHeader);
    }
    assert!(EgressRequest::parse("PO ST", [], "").is_err());
    assert!(EgressRequest::parse("POST", [("a b", "x")], "").is_err());
    assert!(EgressRequest::parse("POST", [("a", "x\r\ny: z")], "").is_err());
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    for status in [301, 302, 303, 307, 308] {
        let location = "http://user:pw@127.0.0.1:1/";
        let address =
            endpoint(format!("HTTP/1.1 {status} X\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")).await;
        let answer = send(address, AMPLE).await.unwrap();
        assert_eq!(answer.status.as_u16(), status);
    }
}

#[tokio::test]
async fn a_compressed_body_is_left_alone() {
    let bomb = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3];
    let mut answer = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 13\r\n\r\n".to_vec();
    answer.extend_from_slice(&bomb);
    assert_eq!(send(endpoint(answer).await, AMPLE).await.unwrap().body[..], bomb);
}

#[tokio::test]
async fn a_body_is_read_up_to_its_limit_and_no_further() {
    let body = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{}", "a".repeat(length));
    let answer = send(endpoint(body(1024)).await, AMPLE).await.unwrap();
    assert_eq!((answer.body.len(), answer.body_truncated), (1024, false));
    let answer = send(endpoint(body(1025)).await, AMPLE).await.unwrap();
    assert_eq!((answer.body.len(), answer.body_truncated), (1024, true));
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n";
    let answer = send(endpoint(chunked).await, AMPLE).await.unwrap();
    assert_eq!((&answer.body[..], answer.body_truncated), (&b"abcdefg"[..], false));
}

#[tokio::test]
async fn a_body_without_end_is_cut_and_its_connection_closed() {
    let (closed, mut is_closed) = mpsc::channel(1);
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10737418240\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    ] {
        let closed = closed.clone();
        let bytes: &[u8] = if head.contains("chunked") { b"8\r\naaaaaaaa\r\n" } else { &[b'a'; 4096] };
        let (address, _) = listen(move |mut stream| {
            let closed = closed.clone();
            async move {
                read_request(&mut stream).await;
                let mut result = stream.write_all(head.as_bytes()).await;
                while result.is_ok() {
                    result = stream.write_all(bytes).await;
                }
                closed.send(()).await.ok();
            }
        })
        .await;
        let clients = clients();
        let to = destination(&format!("http://{address}/hook"));
        let answer = clients.client("shop", None).unwrap().send(&to, post("{}"), budgets(AMPLE)).await.unwrap();
        assert_eq!((answer.body.len(), answer.body_truncated), (1024, true), "{head}");
        is_closed.recv().await.unwrap();
    }
}

#[tokio::test]
async fn a_body_that_drips_ends_with_the_budget() {
    let address = flood("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", b"a", Duration::from_millis(20)).await;
    let started = Instant::now();
    check(send(address, SHORT).await, Failure::BodyTimedOut(SHORT), Reason::BodyTimedOut);
    assert!(started.elapsed() < AMPLE / 3, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_head_that_drips_or_never_comes_ends_with_the_budget() {
    let started = Instant::now();
    let address = flood("HTTP/1.1 200 OK\r\n", b"a", Duration::from_millis(20)).await;
    check(send(address, SHORT).await, Failure::AnswerTimedOut(SHORT), Reason::AnswerTimedOut);
    check(send(endpoint("").await, SHORT).await, Failure::AnswerTimedOut(SHORT), Reason::AnswerTimedOut);
    assert!(started.elapsed() < AMPLE / 3, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_flood_of_1xx_ends_with_the_budget() {
    for line in [&b"HTTP/1.1 100 Continue\r\n\r\n"[..], b"HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\n"] {
        let started = Instant::now();
        let address = flood("", line, Duration::ZERO).await;
        check(send(address, SHORT).await, Failure::AnswerTimedOut(SHORT), Reason::AnswerTimedOut);
        assert!(started.elapsed() < AMPLE / 3, "{:?}", started.elapsed());
    }
}

#[tokio::test]
async fn an_answer_after_some_1xx_is_the_answer() {
    let address =
        endpoint("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(send(address, AMPLE).await.unwrap().status.as_u16(), 204);
}

#[tokio::test]
async fn the_headers_of_an_answer_have_a_limit_of_bytes() {
    let head = |bytes: usize| {
        let rest = "content-length: 0\r\nx-a: \r\n".len();
        format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-a: {}\r\n\r\n", "a".repeat(bytes - rest))
    };
    assert!(send(endpoint(head(HEADER_BYTES_MAX)).await, AMPLE).await.is_ok());
    for bytes in [HEADER_BYTES_MAX + 1, HEADER_BYTES_MAX + 2048, 1024 * 1024] {
        check(send(endpoint(head(bytes)).await, AMPLE).await, Failure::HeadersTooLong, Reason::HeadersTooLong);
    }
    let endless = flood("HTTP/1.1 200 OK\r\nx-a: ", b"aaaaaaaaaaaaaaaa", Duration::ZERO).await;
    check(send(endless, AMPLE).await, Failure::HeadersTooLong, Reason::HeadersTooLong);
}

#[tokio::test]
async fn the_headers_of_an_answer_have_a_limit_of_number() {
    let head =
        |headers: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{}\r\n", "a: b\r\n".repeat(headers - 1));
    assert!(send(endpoint(head(HEADERS_MAX)).await, AMPLE).await.is_ok());
    for headers in [HEADERS_MAX + 1, 10_000] {
        check(send(endpoint(head(headers)).await, AMPLE).await, Failure::HeadersTooLong, Reason::HeadersTooLong);
    }
}

#[tokio::test]
async fn what_is_not_http_is_a_protocol_error() {
    for answer in ["SSH-2.0-OpenSSH_9.6\r\n", "HTTP/9.9 200 OK\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "\0\0\0\0\0\0"] {
        check(send(endpoint(answer).await, AMPLE).await, Failure::Protocol, Reason::ProtocolError);
    }
    let tls_alert = [0x15, 3, 1, 0, 2, 2, 70];
    check(send(endpoint(tls_alert).await, AMPLE).await, Failure::Protocol, Reason::ProtocolError);
    let twice = "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab";
    check(send(endpoint(twice).await, AMPLE).await, Failure::Protocol, Reason::ProtocolError);
}

async fn ends_with(answer: &'static str, end: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let (address, _) = listen(move |mut stream| {
        let end = end.clone();
        async move {
            read_request(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            // Give the client time to read, else a reset would overtake the bytes.
            if !answer.is_empty() {
                sleep(Duration::from_millis(50)).await;
            }
            end(stream);
        }
    })
    .await;
    address
}

fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

#[tokio::test]
async fn a_connection_that_ends_early_is_told_as_that() {
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"] {
        check(send(ends_with(answer, drop).await, AMPLE).await, Failure::Closed, Reason::ConnectionClosed);
        check(send(ends_with(answer, reset).await, AMPLE).await, Failure::Closed, Reason::ConnectionClosed);
    }
    let chunk = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc";
    check(send(ends_with(chunk, drop).await, AMPLE).await, Failure::Closed, Reason::ConnectionClosed);
}

#[tokio::test]
async fn an_answer_before_the_request_was_read_is_an_answer() {
    let (address, _) = listen(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut sink = Vec::new();
        stream.read_to_end(&mut sink).await.ok();
    })
    .await;
    // A few runs, since either side may be first.
    for _ in 0..10 {
        match send(address, AMPLE).await {
            Ok(answer) => assert_eq!(answer.status.as_u16(), 503),
            Err(error) => assert_eq!(error.reason(), Reason::ConnectionClosed, "{error:?}"),
        }
    }
}

#[tokio::test]
async fn a_port_where_nobody_listens_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    check(send(address, AMPLE).await, Failure::Refused, Reason::ConnectionRefused);
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// An endpoint that gives every request this answer and keeps its connections; how
/// many there were.
async fn counting(answer: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let (address, _) = listen(move |mut stream| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            while !read_request(&mut stream).await.is_empty() {
                stream.write_all(answer.as_bytes()).await.ok();
            }
        }
    })
    .await;
    (address, count)
}

#[tokio::test]
async fn connections_are_reused_under_one_policy_and_not_under_the_next() {
    let (address, count) = counting(OK).await;
    let clients = clients();
    let to = destination(&format!("http://{address}/hook"));
    for _ in 0..5 {
        clients.client("shop", None).unwrap().send(&to, post("{}"), budgets(AMPLE)).await.unwrap();
    }
    assert_eq!((count.load(Ordering::SeqCst), clients.open_connections()), (1, 1));

    let strict = EgressPolicy::compile(None, &ClusterNetworks::default()).unwrap();
    let renewed = clients.renew(Arc::new(strict)).unwrap();
    let result = renewed.client("shop", None).unwrap().send(&to, post("{}"), budgets(AMPLE)).await;
    check(result, Failure::NotAllowed, Reason::DestinationNotAllowed);
    assert_eq!(count.load(Ordering::SeqCst), 1);

    // The idle connection ends with the clients that opened it.
    drop(clients);
    let ended = async {
        while renewed.open_connections() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(AMPLE, ended).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_the_endpoint_closed_is_replaced() {
    let (address, _) = listen(|mut stream| async move {
        read_request(&mut stream).await;
        stream.write_all(OK.as_bytes()).await.unwrap();
    })
    .await;
    let clients = clients();
    let to = destination(&format!("http://{address}/hook"));
    for _ in 0..20 {
        let client = clients.client("shop", None).unwrap();
        // The end of the connection and the next request may cross on the way.
        match client.send(&to, post("{}"), budgets(AMPLE)).await {
            Ok(answer) => assert_eq!(answer.status.as_u16(), 200),
            Err(error) => assert_eq!(error.reason(), Reason::ConnectionClosed, "{error:?}"),
        }
    }
}

#[tokio::test]
async fn what_comes_unasked_behind_an_answer_is_no_answer_to_the_next_request() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n";
    let (address, count) = counting(answer).await;
    let clients = clients();
    let to = destination(&format!("http://{address}/hook"));
    for sent in 1..=5 {
        let answer = clients.client("shop", None).unwrap().send(&to, post("{}"), budgets(AMPLE)).await.unwrap();
        assert_eq!((answer.status.as_u16(), count.load(Ordering::SeqCst)), (200, sent));
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_a_while_and_one_that_ended_sooner() {
    let (address, _) = counting(OK).await;
    let clients = clients();
    let to = destination(&format!("http://{address}/hook"));
    clients.client("shop", None).unwrap().send(&to, post("{}"), budgets(AMPLE)).await.unwrap();
    tokio::time::pause();
    let after = async |seconds| {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        // The keeper has its turn.
        tokio::task::yield_now().await;
        clients.open_connections()
    };
    assert_eq!(after(25).await, 1);
    assert_eq!(after(6).await, 0);
    tokio::time::resume();

    let gone = Arc::new(tokio::sync::Notify::new());
    let closed = gone.clone();
    let (address, _) = listen(move |mut stream| {
        let closed = closed.clone();
        async move {
            read_request(&mut stream).await;
            stream.write_all(OK.as_bytes()).await.unwrap();
            drop(stream);
            closed.notify_one();
        }
    })
    .await;
    let to = destination(&format!("http://{address}/hook"));
    clients.client("shop", None).unwrap().send(&to, post("{}"), budgets(AMPLE)).await.unwrap();
    gone.notified().await;
    tokio::time::pause();
    // The runtime looks for news of sockets after some turns.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(after(6).await, 0);
}

#[tokio::test]
async fn many_requests_at_once_stay_apart() {
    let (address, _) = counting(OK).await;
    let clients = clients();
    let to = destination(&format!("http://{address}/hook"));
    let requests = (0..50).map(|_| {
        let client = clients.client("shop", None).unwrap();
        let to = to.clone();
        async move { client.send(&to, post("{}"), Budgets { total: AMPLE, body_bytes_max: 2 }).await.unwrap() }
    });
    for answer in futures::future::join_all(requests).await {
        assert_eq!((&answer.body[..], answer.body_truncated), (&b"ok"[..], false));
    }
}
