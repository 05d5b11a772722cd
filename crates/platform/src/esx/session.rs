//! One login at an ESXi host or a vCenter: made when it is needed, made again when the server forgot it, ended at
//! the end.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::soap::{self, Element, Fault, Reference};
use crate::https::{Answer, Http};
use crate::{Error, Options, Result, Secret, Uri, credentials};

/// How often a call is repeated after a new login.
const LOGINS: usize = 4;
/// Servers forget a session after 30 minutes without a call; file transfers may not count as one.
const KEEP_ALIVE: Duration = Duration::from_secs(300);
/// The end of a session is told to the server, but not waited for longer than this.
const FAREWELL: Duration = Duration::from_secs(3);

/// What a method returns, or the server's fault.
pub(super) type Outcome = std::result::Result<Element, Fault>;

/// A login.
#[derive(Debug)]
pub(super) struct Session {
    pub http: Http,
    pub content: Content,
    user: String,
    password: Secret,
    state: Mutex<State>,
}

/// The objects that everything begins with, and what the server says of itself.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub root: Reference,
    pub properties: Reference,
    pub sessions: Reference,
    pub views: Reference,
    /// The product with its version and build.
    pub product: String,
    /// A vCenter, not one host.
    pub is_vcenter: bool,
}

#[derive(Debug, Default)]
struct State {
    cookie: Option<String>,
    /// Which login it is.
    login: u64,
    used: Option<Instant>,
}

impl Session {
    /// Reaches the server and logs in.
    pub fn open(uri: &Uri, options: &Options) -> Result<Self> {
        let http = Http::new(uri, options)?;
        let content = content(&http)?;
        let usual = if content.is_vcenter { "administrator@vsphere.local" } else { "root" };
        let user = uri.user.clone().unwrap_or_else(|| usual.into());
        let named = Uri { user: Some(user.clone()), ..uri.clone() };
        let password = credentials::password(&named, options)?;
        let state = Mutex::default();
        let session = Self { http, content, user, password, state };
        session.log_in(0)?;
        Ok(session)
    }

    /// Calls a method of `this`; returns its reply's element.
    pub fn call(&self, method: &str, this: &Reference, arguments: &str) -> Result<Element> {
        self.call_within(method, this, arguments, self.http.limit)
    }

    /// As [`call`](Self::call), with a time limit of its own.
    pub fn call_within(
        &self,
        method: &str,
        this: &Reference,
        arguments: &str,
        limit: Duration,
    ) -> Result<Element> {
        match self.try_call(method, this, arguments, limit)? {
            Ok(element) => Ok(element),
            Err(fault) => Err(self.failed(method, &fault)),
        }
    }

    /// As [`call_within`](Self::call_within); a fault is no error.
    pub fn try_call(
        &self,
        method: &str,
        this: &Reference,
        arguments: &str,
        limit: Duration,
    ) -> Result<Outcome> {
        let request = soap::envelope(method, this, arguments);
        for _ in 0..LOGINS {
            let (cookie, login) = self.cookie();
            let answer = post(&self.http, method, cookie.as_deref(), &request, limit)?;
            match read(&self.http, method, &answer)? {
                // The server did nothing, so asking once more does nothing twice.
                Err(fault) if fault.kind == "NotAuthenticated" => self.log_in(login)?,
                // The simulator says so of each object that was asked for.
                Ok(element) if lacks_login(&element) => self.log_in(login)?,
                result => return Ok(result),
            }
        }
        Err(self.thrown_out())
    }

    /// Does what needs the session's cookie; `None` from it means that the server does not know the session any more.
    pub fn with_cookie<T>(
        &self,
        mut work: impl FnMut(Option<&str>) -> Result<Option<T>>,
    ) -> Result<T> {
        self.keep_alive()?;
        for _ in 0..LOGINS {
            let (cookie, login) = self.cookie();
            if let Some(value) = work(cookie.as_deref())? {
                return Ok(value);
            }
            self.log_in(login)?;
        }
        Err(self.thrown_out())
    }

    /// What a fault means for whoever asked for `what`.
    pub fn failed(&self, what: &str, fault: &Fault) -> Error {
        match fault.kind.as_str() {
            "InvalidLogin" | "NoPermission" | "RestrictedVersion" => Error::Credentials {
                place: self.http.place.clone(),
                message: fault.message.clone(),
                repair: None,
            },
            _ => Error::Failed {
                what: format!("{what} at {}", self.http.place),
                message: fault.message.clone(),
                repair: None,
            },
        }
    }

    /// An answer that makes no sense.
    pub fn wrong(&self, what: &str, message: impl Into<String>) -> Error {
        Error::reply(format!("{what} at {}", self.http.place), message)
    }

    /// Logs in, unless somebody did since login number `last`.
    fn log_in(&self, last: u64) -> Result<()> {
        let mut state = self.lock();
        if state.login != last {
            return Ok(());
        }
        let arguments =
            soap::text("userName", &self.user) + &soap::text("password", self.password.reveal());
        let request = soap::envelope("Login", &self.content.sessions, &arguments);
        let answer = post(&self.http, "Login", None, &request, self.http.limit)?;
        if let Err(fault) = read(&self.http, "Login", &answer)? {
            return Err(Error::Credentials {
                place: self.http.place.clone(),
                message: format!("{} for user {}", fault.message, self.user),
                repair: Some(credentials::ADVICE.into()),
            });
        }
        let Some(cookie) = answer.cookie else {
            return Err(self.wrong("Login", "it opens no session"));
        };
        *state = State { cookie: Some(cookie), login: last + 1, used: Some(Instant::now()) };
        Ok(())
    }

    fn keep_alive(&self) -> Result<()> {
        let used = self.lock().used;
        if used.is_some_and(|used| used.elapsed() > KEEP_ALIVE) {
            let this = Reference::new("ServiceInstance", "ServiceInstance");
            self.call("CurrentTime", &this, "")?;
            self.lock().used = Some(Instant::now());
        }
        Ok(())
    }

    fn cookie(&self) -> (Option<String>, u64) {
        let state = self.lock();
        (state.cookie.clone(), state.login)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn thrown_out(&self) -> Error {
        Error::Credentials {
            place: self.http.place.clone(),
            message: "it forgets each session at once".into(),
            repair: None,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let (Some(cookie), _) = self.cookie() else { return };
        let request = soap::envelope("Logout", &self.content.sessions, "");
        let limit = FAREWELL.min(self.http.limit);
        // A server that is gone has no session to end.
        let _ = post(&self.http, "Logout", Some(&cookie), &request, limit);
    }
}

/// What every client asks first, without a login.
fn content(http: &Http) -> Result<Content> {
    let what = "RetrieveServiceContent";
    let this = Reference::new("ServiceInstance", "ServiceInstance");
    let request = soap::envelope(what, &this, "");
    let answer = post(http, what, None, &request, http.limit)?;
    let place = format!("{what} at {}", http.place);
    let reply = read(http, what, &answer)?.map_err(|fault| Error::Failed {
        what: place.clone(),
        message: fault.message,
        repair: None,
    })?;
    let content = reply.child("returnval").ok_or_else(|| Error::reply(&place, "it is empty"))?;
    let named = |name: &str| {
        let reference = content.child(name).and_then(Element::reference);
        reference.ok_or_else(|| Error::reply(&place, format!("it has no {name}")))
    };
    let about = |name| content.at(&["about", name]).map(|value| value.text.clone());
    Ok(Content {
        root: named("rootFolder")?,
        properties: named("propertyCollector")?,
        sessions: named("sessionManager")?,
        views: named("viewManager")?,
        product: about("fullName").unwrap_or_else(|| "VMware vSphere".into()),
        is_vcenter: about("apiType").as_deref() == Some("VirtualCenter"),
    })
}

fn post(
    http: &Http,
    what: &str,
    cookie: Option<&str>,
    request: &str,
    limit: Duration,
) -> Result<Answer> {
    let mut headers =
        vec![("Content-Type", "text/xml; charset=utf-8"), ("SOAPAction", "urn:vim25/6.5")];
    headers.extend(cookie.map(|cookie| ("Cookie", cookie)));
    http.post(what, "/sdk", &headers, request, limit)
}

/// A reply, whatever the status: faults come with 500.
fn read(http: &Http, what: &str, answer: &Answer) -> Result<Outcome> {
    soap::reply(&answer.body).map_err(|message| {
        let message = match answer.status.is_success() || answer.status.as_u16() == 500 {
            true => message,
            false => format!("the server says {}", answer.status),
        };
        Error::reply(format!("{what} at {}", http.place), message)
    })
}

/// Whether all that was asked for is withheld for want of a login.
fn lacks_login(reply: &Element) -> bool {
    let objects = reply.child("returnval").into_iter().flat_map(|value| value.children("objects"));
    objects.flat_map(|object| object.children("missingSet")).any(|missing| {
        let fault = missing.at(&["fault", "fault"]);
        fault.and_then(Element::kind) == Some("NotAuthenticated")
    })
}
