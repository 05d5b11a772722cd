//! Disks of HTTP servers, of which some misbehave.

mod server;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use disk::{
    ConvertOptions, Error, Format, HttpError, HttpOptions, HttpSource, ImageOptions, Source,
    compare, convert, create, open, open_chain, open_url,
};
use server::{Answer, Server};

const MIB: usize = 1 << 20;

fn content(length: usize) -> Vec<u8> {
    (0..length as u32 / 4).flat_map(|n| (n.wrapping_mul(2_654_435_761) / 3).to_le_bytes()).collect()
}

fn quick() -> HttpOptions {
    HttpOptions { pause: Duration::from_millis(1), attempts: 3, ..HttpOptions::default() }
}

/// Why a file cannot be opened, or what was read of it.
fn read(url: &str, options: &HttpOptions) -> Result<Vec<u8>, HttpError> {
    let read = || -> disk::Result<Vec<u8>> {
        let source = HttpSource::open(url, options)?;
        let mut bytes = vec![0; source.len() as usize];
        source.read_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    read().map_err(|error| match error {
        Error::Http { source, .. } => *source,
        other => panic!("{other}"),
    })
}

#[test]
fn a_file_is_read_by_ranges_of_which_few_are_asked_for() {
    let file = content(20 * MIB + 999);
    let whole = file.clone();
    let server = Server::new(move |request, _| Answer::part(request, &whole, "ETag: \"a\"\r\n"));
    let source = HttpSource::open(&server.url("/disk.raw"), &quick()).unwrap();
    assert_eq!(source.len(), file.len() as u64);
    assert_eq!(source.version(), Some("\"a\""));
    let mut found = vec![0; 4096];
    for (index, wanted) in file.chunks(4096).enumerate() {
        let found = &mut found[..wanted.len()];
        source.read_at(found, index as u64 * 4096).unwrap();
        assert!(found == wanted, "at {index}");
    }
    // 1, then 1, 2, 4, ... 64 blocks of 64 KiB.
    assert!(server.count() <= 13, "{} requests", server.count());
    // What was read last is kept, what was read first is not.
    let before = server.count();
    source.read_at(&mut found, file.len() as u64 - 4096).unwrap();
    assert_eq!(server.count(), before);
    source.read_at(&mut found, 0).unwrap();
    assert_eq!(server.count(), before + 1);
    assert!(matches!(
        source.read_at(&mut [0; 2], file.len() as u64 - 1),
        Err(Error::Truncated { .. })
    ));
}

#[test]
fn threads_do_not_ask_twice_for_the_same() {
    let file = content(8 * MIB);
    let whole = file.clone();
    let server = Server::new(move |request, _| Answer::part(request, &whole, ""));
    let source = Arc::new(HttpSource::open(&server.url("/"), &quick()).unwrap());
    let threads: Vec<_> = (0..6)
        .map(|_| {
            let (source, file) = (Arc::clone(&source), file.clone());
            std::thread::spawn(move || {
                let mut found = vec![0; file.len()];
                source.read_at(&mut found, 0).unwrap();
                assert!(found == file);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let requests = server.requests.lock().unwrap();
    let asked: usize =
        requests.iter().filter_map(|it| it.range()).map(|(first, last)| last + 1 - first).sum();
    assert_eq!(asked, file.len());
}

#[test]
fn lost_connections_and_passing_failures_are_tried_again() {
    let file = content(6 * MIB);
    let whole = file.clone();
    let server = Server::new(move |request, number| match number % 4 {
        0 => Answer::status("503 Service Unavailable", "Retry-After: 0\r\n"),
        1 => Answer { cut: Some(100_000), ..Answer::part(request, &whole, "") },
        2 => Answer { head: String::new(), cut: Some(0), ..Answer::default() },
        _ => Answer::part(request, &whole, ""),
    });
    assert!(read(&server.url("/x"), &HttpOptions { attempts: 5, ..quick() }).unwrap() == file);
}

#[test]
fn a_server_that_never_recovers_is_given_up() {
    let server = Server::new(|_, _| Answer::status("500 Internal Server Error", ""));
    let error = read(&server.url("/x"), &quick()).unwrap_err();
    assert!(matches!(error, HttpError::Status(500, _)), "{error}");
    assert_eq!(server.count(), 3);

    let whole = content(MIB);
    let server = Server::new(move |request, number| match number {
        0 => Answer::part(request, &whole, ""),
        _ => Answer { cut: Some(10), ..Answer::part(request, &whole, "") },
    });
    let error = read(&server.url("/x"), &quick()).unwrap_err();
    assert!(matches!(error, HttpError::Lost(_)), "{error}");
    assert_eq!(server.count(), 1 + 3);

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = read(&format!("http://{nobody}/x"), &quick()).unwrap_err();
    assert!(matches!(error, HttpError::Connection(_)), "{error}");
}

#[test]
fn a_server_that_falls_silent_is_given_up() {
    let whole = content(MIB);
    let server = Server::new(move |request, _| Answer {
        wait: Duration::from_secs(600),
        ..Answer::part(request, &whole, "")
    });
    let options = HttpOptions { timeout: Duration::from_millis(200), attempts: 2, ..quick() };
    let error = read(&server.url("/x"), &options).unwrap_err();
    assert!(matches!(error, HttpError::Lost(_) | HttpError::Connection(_)), "{error}");
}

#[test]
fn a_file_that_changes_is_an_error() {
    let headers = [
        ("ETag: \"1\"\r\n", "ETag: \"2\"\r\n"),
        (
            "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n",
            "Last-Modified: Tue, 02 Jan 2024 00:00:00 GMT\r\n",
        ),
        ("ETag: \"1\"\r\n", ""),
    ];
    for (before, after) in headers {
        let whole = content(MIB);
        let server = Server::new(move |request, number| {
            Answer::part(request, &whole, if number == 0 { before } else { after })
        });
        let error = read(&server.url("/x"), &quick()).unwrap_err();
        assert!(matches!(error, HttpError::Changed), "{before}: {error}");
    }
    for other in [content(MIB + 4), content(MIB / 2), Vec::new()] {
        let whole = content(MIB);
        let server = Server::new(move |request, number| {
            Answer::part(request, if number == 0 { &whole } else { &other }, "")
        });
        let error = read(&server.url("/x"), &quick()).unwrap_err();
        assert!(matches!(error, HttpError::Changed), "{error}");
    }
    // A tag that is only called weak meanwhile is the same.
    let whole = content(MIB);
    let server = Server::new(move |request, number| {
        Answer::part(
            request,
            &whole,
            if number == 0 { "ETag: \"1\"\r\n" } else { "ETag: W/\"1\"\r\n" },
        )
    });
    assert!(read(&server.url("/x"), &quick()).is_ok());
}

#[test]
fn answers_that_are_of_no_use_are_refused_with_the_reason() {
    type Made = fn(&server::Request) -> Answer;
    let answers: [(Made, &str); 13] = [
        (
            |_| Answer::status("401 Unauthorized", ""),
            "answered 401: it wants a name and a password",
        ),
        (|_| Answer::status("403 Forbidden", ""), "answered 403"),
        (|_| Answer::status("404 Not Found", ""), "answered 404: it has no such file"),
        (|_| Answer::status("204 No Content", ""), "answered 204"),
        (|_| Answer::status("200 OK", ""), "does not send ranges"),
        (|_| Answer::status("302 Found", "Location: /x\r\n"), "redirects too often"),
        (|_| Answer::status("302 Found", "Location: file:///etc/passwd\r\n"), "not followed"),
        (|_| Answer::status("302 Found", ""), "a redirect leads nowhere"),
        (|_| Answer::status("206 Partial Content", ""), "which range it sends"),
        (
            |_| Answer::status("206 Partial Content", "Content-Range: bytes 0-9/*\r\n"),
            "how long the file is",
        ),
        (
            |_| Answer::status("206 Partial Content", "Content-Range: bytes 5-9/10\r\n"),
            "another range",
        ),
        (
            |_| {
                Answer::status(
                    "206 Partial Content",
                    "Content-Range: bytes 0-9/18446744073709551615\r\n",
                )
            },
            "more than any disk",
        ),
        (|request| Answer::part(request, &[1; 2048], "Content-Encoding: gzip\r\n"), "compressed"),
    ];
    for (answer, wanted) in answers {
        let server = Server::new(move |request, _| answer(request));
        let error = read(&server.url("/x"), &quick()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    for address in ["http://", "http:///x", "http://a b/", "https://[::1"] {
        assert!(matches!(read(address, &quick()), Err(HttpError::Address(_))), "{address}");
    }
}

#[test]
fn an_empty_file_is_an_empty_source() {
    let server = Server::new(|request, _| Answer::part(request, &[], ""));
    assert_eq!(read(&server.url("/x"), &quick()).unwrap(), []);
}

#[test]
fn redirects_are_followed_and_headers_stay_with_their_server() {
    let file = content(MIB);
    let whole = file.clone();
    let store = Server::new(move |request, _| Answer::part(request, &whole, ""));
    let there = store.url("/stored?token=1");
    let server = Server::new(move |_, _| {
        Answer::status("307 Temporary Redirect", &format!("Location: {there}\r\n"))
    });
    let headers = vec![("Cookie".to_owned(), "session=secret".to_owned())];
    let options = HttpOptions { headers, ..quick() };
    assert!(read(&server.url("/x"), &options).unwrap() == file);
    // Where it led is remembered.
    assert_eq!(server.count(), 1);
    assert_eq!(server.requests.lock().unwrap()[0].headers["cookie"], "session=secret");
    assert!(store.requests.lock().unwrap().iter().all(|it| !it.headers.contains_key("cookie")));
}

#[test]
fn a_redirect_that_has_expired_is_asked_for_anew() {
    let file = content(MIB);
    let whole = file.clone();
    let server = Server::new(move |request, number| match request.path.as_str() {
        "/x" => Answer::status("302 Found", &format!("Location: /at/{number}\r\n")),
        "/at/0" if number > 1 => Answer::status("403 Forbidden", ""),
        _ => Answer::part(request, &whole, ""),
    });
    assert!(read(&server.url("/x"), &quick()).unwrap() == file);
}

#[test]
fn a_name_and_a_password_are_sent_and_not_shown() {
    let server = Server::new(|request, _| match request.headers.get("authorization") {
        Some(found) if found == "Basic bWU6c2VjcmV0" => Answer::status("404 Not Found", ""),
        _ => Answer::status("401 Unauthorized", ""),
    });
    let url = format!("http://me:secret@{}/x?token=hidden", server.address);
    let error = HttpSource::open(&url, &quick()).unwrap_err();
    assert_eq!(error.to_string(), format!("Cannot read http://{}/x", server.address));
    let Error::Http { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(**source, HttpError::Status(404, _)), "{source}");
    assert!(!format!("{error:?}").contains("secret"));
}

#[test]
fn tls_is_checked_against_the_roots_that_are_trusted() {
    let file = content(MIB);
    let whole = file.clone();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let server = Server::with_tls(config, move |request, _| Answer::part(request, &whole, ""));
    let error = read(&server.url("/x"), &quick()).unwrap_err();
    assert!(matches!(error, HttpError::Connection(_)), "{error}");
    assert_eq!(server.count(), 0);

    let root = ureq::tls::Certificate::from_der(made.cert.der()).to_owned();
    let tls = ureq::tls::TlsConfig::builder()
        .root_certs(ureq::tls::RootCerts::Specific(Arc::new(vec![root])))
        .unversioned_rustls_crypto_provider(provider)
        .build();
    let agent = ureq::Agent::config_builder().tls_config(tls).build().new_agent();
    let options = HttpOptions { agent: Some(agent), ..quick() };
    assert!(read(&server.url("/x"), &options).unwrap() == file);
}

/// The raw disk and an image of it.
fn image(folder: &Path, to: &str) -> (Vec<u8>, Vec<u8>) {
    let file = content(3 * MIB);
    std::fs::write(folder.join("disk.raw"), &file).unwrap();
    let options = ImageOptions { read_only: true, format: Some(Format::Raw), ..Default::default() };
    let raw = open(folder.join("disk.raw"), &options).unwrap();
    let mut options = ConvertOptions::new(Format::Raw);
    options.image = to.parse().unwrap();
    convert(&*raw, folder.join("image"), &options, |_| {}).unwrap();
    (file, std::fs::read(folder.join("image")).unwrap())
}

#[test]
fn images_of_every_format_are_read_from_a_server() {
    let folder = tempfile::tempdir().unwrap();
    for to in ["qcow2", "vmdk", "vmdk,layout=stream", "vhd", "vhdx", "vdi", "parallels", "raw"] {
        let (_, image) = image(folder.path(), to);
        let server = Server::of(vec![("/image", image)]);
        let (remote, chain) = open_chain(server.url("/image"), &ImageOptions::default()).unwrap();
        assert_eq!(to.split(',').next(), Some(chain[0].format.name()));
        assert_eq!(chain[0].path, Path::new(&server.url("/image")));
        assert!(chain[0].details.contains(&("version", "\"1\"".to_owned())));
        assert!(remote.is_read_only());
        let local = open(
            folder.path().join("image"),
            &ImageOptions { read_only: true, ..Default::default() },
        );
        assert_eq!(compare(&*local.unwrap(), &*remote, |_| {}).unwrap().difference, None, "{to}");
        std::fs::remove_file(folder.path().join("image")).unwrap();
    }
}

#[test]
fn parents_and_extents_are_read_from_the_folder_on_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let (file, parent) = image(folder.path(), "vmdk");
    std::fs::rename(folder.path().join("image"), folder.path().join("base image")).unwrap();
    let over = folder.path().join("over");
    let mut options: disk::CreateOptions = "qcow2".parse().unwrap();
    options.length = file.len() as u64;
    options.backing = Some(("base image".to_owned(), Format::Vmdk));
    create(&over, &options).unwrap();
    let descriptor = format!(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
         RW {} FLAT \"disk.raw\" 0\n",
        file.len() / 512
    );
    let over = std::fs::read(over).unwrap();
    let server = Server::of(vec![
        ("/vm/over?x=1", over.clone()),
        ("/vm/base%20image?x=1", parent),
        ("/vm/flat.vmdk", descriptor.into_bytes()),
        ("/vm/disk.raw", file.clone()),
        ("/alone/over", over),
    ]);
    for path in ["/vm/over?x=1", "/vm/flat.vmdk"] {
        let (disk, _) = open_url(&server.url(path), &quick(), &ImageOptions::default()).unwrap();
        let mut found = vec![0; file.len()];
        disk.read_at(&mut found, 0).unwrap();
        assert!(found == file, "{path}");
    }
    let error =
        open_url(&server.url("/alone/over"), &quick(), &ImageOptions::default()).err().unwrap();
    let Error::Image { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.to_string(), "The image needs the file \"base image\", which was not found");
}

#[test]
fn a_chain_on_a_server_that_leads_back_to_itself_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut options: disk::CreateOptions = "qcow2".parse().unwrap();
    options.length = 1 << 20;
    options.backing = Some(("over".to_owned(), Format::Qcow2));
    create(folder.path().join("image"), &options).unwrap();
    let over = std::fs::read(folder.path().join("image")).unwrap();
    let server = Server::of(vec![("/over", over)]);
    let error = open_url(&server.url("/over"), &quick(), &ImageOptions::default()).err().unwrap();
    assert!(format!("{error:?}").contains("leads back to itself"), "{error:?}");
}

#[test]
fn disks_in_an_archive_on_a_server_are_read_inside_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (_, stream) = image(folder.path(), "vmdk,layout=stream");
    for name in ["one.vmdk", "two.vmdk"] {
        std::fs::write(folder.path().join(name), &stream).unwrap();
    }
    let tar = |name: &str, members: &[&str]| {
        let made = std::process::Command::new("tar")
            .current_dir(folder.path())
            .args(["-cf", name])
            .args(members)
            .status();
        assert!(made.unwrap().success());
        std::fs::read(folder.path().join(name)).unwrap()
    };
    let (single, double) = (tar("a.ova", &["one.vmdk"]), tar("b.ova", &["one.vmdk", "two.vmdk"]));
    let server = Server::of(vec![("/a.ova", single), ("/b.ova", double)]);
    let local = open(
        folder.path().join("disk.raw"),
        &ImageOptions { read_only: true, ..Default::default() },
    );
    let local = local.unwrap();
    for path in ["/a.ova", "/a.ova#one.vmdk", "/b.ova#two.vmdk"] {
        let (disk, chain) = open_chain(server.url(path), &ImageOptions::default()).unwrap();
        assert_eq!(compare(&*local, &*disk, |_| {}).unwrap().difference, None, "{path}");
        assert!(chain[0].path.to_string_lossy().ends_with(".vmdk"));
    }
    let error = open(server.url("/b.ova"), &ImageOptions::default()).err().unwrap();
    assert!(error.to_string().contains(&server.url("/b.ova#one.vmdk")), "{error}");
}

#[test]
fn a_conversion_reads_from_a_server_and_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    // More than is kept.
    let file = content(24 * MIB);
    let whole = file.clone();
    let is_gone = Arc::new(AtomicBool::new(false));
    let gone = is_gone.clone();
    let server = Server::new(move |request, _| match gone.load(Ordering::Relaxed) {
        false => Answer::part(request, &whole, ""),
        true => Answer::status("404 Not Found", ""),
    });
    let source = open(server.url("/disk"), &ImageOptions::default()).unwrap();
    let target = folder.path().join("disk.qcow2");
    convert(&*source, &target, &ConvertOptions::new(Format::Qcow2), |_| {}).unwrap();
    let made = open(&target, &ImageOptions { read_only: true, ..Default::default() }).unwrap();
    let mut found = vec![0; file.len()];
    made.read_at(&mut found, 0).unwrap();
    assert!(found == file);
    is_gone.store(true, Ordering::Relaxed);
    let other = folder.path().join("other.qcow2");
    assert!(convert(&*source, &other, &ConvertOptions::new(Format::Qcow2), |_| {}).is_err());
    assert!(!other.exists());
}
