//! Calls of the XenAPI within a session: made when it is needed, made again when the server forgot it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::https::Http;
use crate::{Error, Options, Result, Secret, Uri, credentials};

/// The version of the XenAPI that is spoken; servers take every older one.
const API: &str = "1.0";
/// Who asks, as it stands in the server's audit log.
const ORIGINATOR: &str = "omnivisor";
/// How often a call is repeated after a new login.
const LOGINS: usize = 3;
/// A pool has one master; more redirects lead in a circle.
const MOST_MASTERS: usize = 4;
/// The end of a session is told, but not waited for longer than this.
const FAREWELL: Duration = Duration::from_secs(3);

/// Why a call failed: the name of the error, and what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub code: String,
    pub about: Vec<String>,
}

/// What a call returns, or the server's fault.
pub(super) type Outcome = std::result::Result<Value, Fault>;

/// A login at a pool's master.
pub(super) struct Session {
    pub http: Http,
    user: String,
    password: Secret,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<String>,
    /// Which login it is.
    login: u64,
}

impl Session {
    /// Reaches the server, or the master to whom it sends us, and logs in.
    pub fn open(uri: &Uri, options: &Options) -> Result<Self> {
        let user = uri.user.clone().unwrap_or_else(|| "root".into());
        let named = Uri { user: Some(user.clone()), ..uri.clone() };
        let password = credentials::password(&named, options)?;
        let mut at = uri.clone();
        for _ in 0..MOST_MASTERS {
            let http = Http::new(&at, options)?;
            let (user, password) = (user.clone(), password.clone());
            let session = Self { http, user, password, state: Mutex::default() };
            match session.log_in(0)? {
                None => return Ok(session),
                Some(master) => {
                    tracing::info!(%master, "{} is no pool master", session.http.place);
                    let text = match master.matches(':').count() > 1 {
                        true => format!("xapi://[{master}]"),
                        false => format!("xapi://{master}"),
                    };
                    at = Uri { user: uri.user.clone(), ..Uri::parse(&text)? };
                    // Tests have several on one computer.
                    at.port = at.port.or(uri.port);
                }
            }
        }
        Err(Error::Unreachable {
            place: uri.to_string(),
            message: "its pool has no master that says that it is one".into(),
            repair: None,
        })
    }

    /// Calls a method; `arguments` come after the session.
    pub fn call(&self, method: &str, arguments: &[Value]) -> Result<Value> {
        self.call_within(method, arguments, self.http.limit)
    }

    /// As [`call`](Self::call), with a time limit of its own.
    pub fn call_within(&self, method: &str, arguments: &[Value], limit: Duration) -> Result<Value> {
        self.try_call(method, arguments, limit)?.map_err(|fault| self.failed(method, &fault))
    }

    /// As [`call_within`](Self::call_within); a fault is no error.
    pub fn try_call(&self, method: &str, arguments: &[Value], limit: Duration) -> Result<Outcome> {
        for _ in 0..LOGINS {
            let (session, login) = self.session();
            let mut all = vec![Value::String(session)];
            all.extend_from_slice(arguments);
            match call(&self.http, method, &all, limit)? {
                // The server did nothing, so asking once more does nothing twice.
                Err(fault) if fault.code == "SESSION_INVALID" => {
                    if let Some(master) = self.log_in(login)? {
                        return Err(self.moved(&master));
                    }
                }
                Err(fault) if fault.code == "HOST_IS_SLAVE" => {
                    let master = fault.about.first().cloned().unwrap_or_default();
                    return Err(self.moved(&master));
                }
                result => return Ok(result),
            }
        }
        Err(Error::Credentials {
            place: self.http.place.clone(),
            message: "it forgets each session at once".into(),
            repair: None,
        })
    }

    /// The reference of the session, for what is not a call.
    pub fn reference(&self) -> String {
        self.session().0
    }

    /// What a fault means for whoever asked for `what`.
    pub fn failed(&self, what: &str, fault: &Fault) -> Error {
        let about = fault.about.join(", ").replace(char::is_control, " ");
        let repair = match fault.code.as_str() {
            "VM_MISSING_PV_DRIVERS"
            | "VM_LACKS_FEATURE"
            | "VM_LACKS_FEATURE_SHUTDOWN"
            | "VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT" => {
                Some("the guest has no tools that would listen; --force does without them".into())
            }
            "RBAC_PERMISSION_DENIED" => Some("log in as a user who may do this".into()),
            _ => None,
        };
        let about: String = about.chars().take(400).collect();
        let message = match about.is_empty() {
            true => fault.code.clone(),
            false => format!("{} ({about})", fault.code),
        };
        Error::Failed { what: format!("{what} at {}", self.http.place), message, repair }
    }

    /// An answer that makes no sense.
    pub fn wrong(&self, what: &str, message: impl Into<String>) -> Error {
        Error::reply(format!("{what} at {}", self.http.place), message)
    }

    /// Logs in, unless somebody did since login number `last`; returns the master if this is none.
    fn log_in(&self, last: u64) -> Result<Option<String>> {
        let mut state = self.lock();
        if state.login != last {
            return Ok(None);
        }
        let arguments =
            [json!(self.user), json!(self.password.reveal()), json!(API), json!(ORIGINATOR)];
        match call(&self.http, "session.login_with_password", &arguments, self.http.limit)? {
            Ok(Value::String(session)) => {
                *state = State { session: Some(session), login: last + 1 };
                Ok(None)
            }
            Ok(_) => Err(self.wrong("session.login_with_password", "it opens no session")),
            Err(fault) if fault.code == "HOST_IS_SLAVE" => match fault.about.first() {
                Some(master) => Ok(Some(master.clone())),
                None => Err(self.failed("session.login_with_password", &fault)),
            },
            Err(fault) if fault.code == "SESSION_AUTHENTICATION_FAILED" => {
                Err(Error::Credentials {
                    place: self.http.place.clone(),
                    message: format!("the password of user {} is wrong", self.user),
                    repair: Some(credentials::ADVICE.into()),
                })
            }
            Err(fault) => Err(self.failed("session.login_with_password", &fault)),
        }
    }

    fn moved(&self, master: &str) -> Error {
        Error::Unreachable {
            place: self.http.place.clone(),
            message: format!("its pool has another master now, {master}"),
            repair: Some("run the same command again".into()),
        }
    }

    fn session(&self) -> (String, u64) {
        let state = self.lock();
        (state.session.clone().unwrap_or_default(), state.login)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let (session, _) = self.session();
        if !session.is_empty() {
            // A server that is gone has no session to end.
            let limit = FAREWELL.min(self.http.limit);
            let _ = call(&self.http, "session.logout", &[json!(session)], limit);
        }
    }
}

fn call(http: &Http, method: &str, arguments: &[Value], limit: Duration) -> Result<Outcome> {
    let request = json!({ "jsonrpc": "2.0", "method": method, "params": arguments, "id": 1 });
    let headers = [("Content-Type", "application/json")];
    let answer = http.post(method, "/jsonrpc", &headers, &request.to_string(), limit)?;
    if !answer.status.is_success() {
        let message = format!("the server says {}", answer.status);
        return Err(Error::reply(format!("{method} at {}", http.place), message));
    }
    outcome(&answer.body)
        .map_err(|message| Error::reply(format!("{method} at {}", http.place), message))
}

/// Reads an answer; the error is a sentence.
fn outcome(body: &[u8]) -> std::result::Result<Outcome, String> {
    let mut answer: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let error = answer.get_mut("error").map(Value::take).unwrap_or_default();
    if error.is_null() {
        return match answer.get_mut("result") {
            Some(result) => Ok(Ok(result.take())),
            None => Err("it has neither a result nor an error".into()),
        };
    }
    let texts = |list: &Value| -> Vec<String> {
        let text = |one: &Value| one.as_str().map_or_else(|| one.to_string(), str::to_owned);
        list.as_array().into_iter().flatten().take(16).map(text).collect()
    };
    // Version 1 of the protocol has the name in front of what it is about.
    let mut about = texts(if error.is_array() { &error } else { &error["data"] });
    let code = match error["message"].as_str() {
        Some(code) => code.to_owned(),
        None if about.is_empty() => return Err("its error has no name".into()),
        None => about.remove(0),
    };
    if about.first() == Some(&code) {
        about.remove(0);
    }
    Ok(Err(Fault { code, about }))
}

/// Reads any bytes as an answer.
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok(Ok(result)) = outcome(bytes) {
        super::records::fuzz(&result);
        super::description::fuzz(&result);
    }
    super::nbd::fuzz(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_both_versions_are_read() {
        let two = r#"{"jsonrpc":"2.0","error":{"code":1,"message":"HOST_IS_SLAVE","data":["10.0.0.1"]},"id":1}"#;
        let fault = outcome(two.as_bytes()).unwrap().unwrap_err();
        assert_eq!(fault, Fault { code: "HOST_IS_SLAVE".into(), about: vec!["10.0.0.1".into()] });
        let one = r#"{"result":null,"error":["HOST_IS_SLAVE","10.0.0.1"],"id":1}"#;
        assert_eq!(outcome(one.as_bytes()).unwrap().unwrap_err(), fault);
        let good = r#"{"jsonrpc":"2.0","result":"OpaqueRef:1","id":1}"#;
        assert_eq!(outcome(good.as_bytes()).unwrap().unwrap(), "OpaqueRef:1");
        for wrong in ["", "[]", "{}", r#"{"error":{}}"#, r#"{"error":[]}"#] {
            assert!(outcome(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
