//! Disks of datastores, read in ranges through the disk formats.

use std::sync::Arc;

use disk::{Disk, HttpOptions, ImageOptions};
use ureq::http::{Request, Response, StatusCode};
use ureq::middleware::{Middleware, MiddlewareNext};
use ureq::{Agent, Body, SendBody};

use super::datastore::{Datastore, DatastorePath};
use super::session::Session;
use crate::Result;

/// Opens a disk with the images that it is based on.
pub(super) fn open(datastore: &Datastore, file: &DatastorePath) -> Result<Arc<dyn Disk>> {
    let http = &datastore.session.http;
    let options = HttpOptions {
        agent: Some(agent(&datastore.session)),
        timeout: http.limit,
        ..HttpOptions::default()
    };
    let url = format!("{}{}", http.base(), datastore.address(file));
    let image = ImageOptions { read_only: true, ..ImageOptions::default() };
    Ok(disk::open_url(&url, &options, &image)?.0)
}

/// Sends requests within a session, whichever that is at the moment.
fn agent(session: &Arc<Session>) -> Agent {
    let within = Within { session: session.clone() };
    let config = Agent::config_builder().middleware(within).max_redirects(0);
    config.http_status_as_error(false).build().into()
}

struct Within {
    session: Arc<Session>,
}

impl Middleware for Within {
    /// Sends it by the session's own agent, which knows whom to trust; the one that asks us connects to nobody.
    fn handle(
        &self,
        request: Request<SendBody<'_>>,
        _: MiddlewareNext<'_>,
    ) -> std::result::Result<Response<Body>, ureq::Error> {
        let (head, _) = request.into_parts();
        let answer = self.session.with_cookie(|cookie| {
            let mut again = Request::get(head.uri.clone());
            for (name, value) in &head.headers {
                again = again.header(name, value);
            }
            if let Some(cookie) = cookie {
                again = again.header("Cookie", cookie);
            }
            let sent = again.body(()).map_err(ureq::Error::from);
            match sent.and_then(|request| self.session.http.agent().run(request)) {
                Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED => Ok(None),
                Ok(answer) => Ok(Some(Ok(answer))),
                Err(error) => Ok(Some(Err(error))),
            }
        });
        answer.unwrap_or_else(|error| Err(ureq::Error::Other(error.into())))
    }
}
