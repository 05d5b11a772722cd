//! NTLM version 2 with session security (MS-NLMP): who we are without saying the password, and messages that nobody else
//! reads or changes. Version 1 and sessions with less than 128 bits are refused.

use hmac::{Hmac, KeyInit, Mac};
use md4::Md4;
use md5::{Digest, Md5};
use rc4::{Rc4, StreamCipher};

use crate::Secret;

/// Who logs in.
#[derive(Clone, Debug)]
pub(super) struct Account {
    /// The domain; empty for one that the server knows itself, or where the user's name has it.
    pub domain: String,
    pub user: String,
    pub password: Secret,
}

/// What an exchange begins with, and its answer depends on.
#[derive(Clone, Debug)]
pub(super) struct Negotiate(Vec<u8>);

/// What is random and what time it is, as the test vectors of MS-NLMP have them fixed.
#[derive(Clone, Debug)]
pub(super) struct Chance {
    pub client_challenge: [u8; 8],
    pub session_key: [u8; 16],
    /// A FILETIME, for servers that do not tell theirs.
    pub time: u64,
}

/// What holds for a connection after both sides have proved themselves.
pub(super) struct Session {
    ours: Direction,
    theirs: Direction,
}

/// One direction of a session.
struct Direction {
    signing: [u8; 16],
    sealing: Rc4,
    sequence: u32,
}

/// Length of a message's signature.
pub(super) const SIGNATURE: usize = 16;

// MS-NLMP, 2.2.2.5.
const UNICODE: u32 = 0x0000_0001;
const REQUEST_TARGET: u32 = 0x0000_0004;
const SIGN: u32 = 0x0000_0010;
const SEAL: u32 = 0x0000_0020;
const NTLM: u32 = 0x0000_0200;
const ALWAYS_SIGN: u32 = 0x0000_8000;
const EXTENDED_SECURITY: u32 = 0x0008_0000;
const TARGET_INFO: u32 = 0x0080_0000;
const VERSION: u32 = 0x0200_0000;
const BITS_128: u32 = 0x2000_0000;
const KEY_EXCHANGE: u32 = 0x4000_0000;
const OFFERED: u32 = UNICODE
    | REQUEST_TARGET
    | SIGN
    | SEAL
    | NTLM
    | ALWAYS_SIGN
    | EXTENDED_SECURITY
    | TARGET_INFO
    | VERSION
    | BITS_128
    | KEY_EXCHANGE;
const DEMANDED: u32 = UNICODE | SIGN | SEAL | EXTENDED_SECURITY | BITS_128 | KEY_EXCHANGE;

const MAGIC: &[u8; 8] = b"NTLMSSP\0";
/// Windows 10, revision 15 of NTLM; only looked at by people.
const OUR_VERSION: [u8; 8] = [10, 0, 0x61, 0x4a, 0, 0, 0, 15];
/// Longest message that is taken; real ones have some hundred bytes.
const LONGEST: usize = 16 << 10;

// MS-NLMP, 2.2.2.1.
const AV_END: u16 = 0;
const AV_FLAGS: u16 = 6;
const AV_TIMESTAMP: u16 = 7;
const AV_TARGET_NAME: u16 = 9;
const AV_CHANNEL_BINDINGS: u16 = 10;
const HAS_MIC: u32 = 2;

impl Account {
    /// From `user`, `DOMAIN\user` or `user@domain`.
    pub fn new(name: &str, password: Secret) -> Self {
        let (domain, user) = name.split_once('\\').unwrap_or(("", name));
        Self { domain: domain.into(), user: user.into(), password }
    }

    /// NTOWFv2.
    fn key(&self) -> [u8; 16] {
        let upper = |letter: char| {
            // One for one: the server does not know `SS` for `ß`.
            let mut upper = letter.to_uppercase();
            upper.next().filter(|_| upper.next().is_none()).unwrap_or(letter)
        };
        let name = self.user.chars().map(upper).chain(self.domain.chars());
        let hash: [u8; 16] = Md4::digest(utf16(self.password.reveal())).into();
        mac(&hash, &[&utf16(&name.collect::<String>())])
    }
}

impl Negotiate {
    /// The first message.
    pub fn new() -> Self {
        let mut message = [&MAGIC[..], &1_u32.to_le_bytes(), &OFFERED.to_le_bytes()].concat();
        message.extend([0; 16]);
        message.extend(OUR_VERSION);
        Self(message)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Answers a server's challenge. `target` is the service that is meant, such as `HTTP/host`; `binding` is the hash of
    /// the TLS channel below.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the challenge.
    pub fn answer(
        &self,
        challenge: &[u8],
        account: &Account,
        target: &str,
        binding: Option<[u8; 16]>,
        chance: &Chance,
    ) -> Result<(Vec<u8>, Session), &'static str> {
        let broken = "its NTLM challenge is broken";
        if challenge.len() > LONGEST || challenge.get(..12) != Some(b"NTLMSSP\0\x02\0\0\0") {
            return Err(broken);
        }
        let flags = u32::from_le_bytes(array(challenge, 20).ok_or(broken)?);
        if flags & DEMANDED != DEMANDED {
            return Err("it wants a form of NTLM that is not safe any more");
        }
        let nonce: [u8; 8] = array(challenge, 24).ok_or(broken)?;
        let info = field(challenge, 40).ok_or(broken)?;
        let mut pairs = pairs(info).ok_or(broken)?;
        let time = pairs.iter().find(|(id, _)| *id == AV_TIMESTAMP);
        let time = time.and_then(|(_, value)| array(value, 0)).map(u64::from_le_bytes);
        if time.is_some() {
            let old = pairs.iter().find(|(id, _)| *id == AV_FLAGS);
            let old = old.and_then(|(_, value)| array(value, 0)).map_or(0, u32::from_le_bytes);
            pairs.retain(|(id, _)| *id != AV_FLAGS);
            pairs.push((AV_FLAGS, (old | HAS_MIC).to_le_bytes().to_vec()));
        }
        pairs.retain(|(id, _)| !matches!(*id, AV_CHANNEL_BINDINGS | AV_TARGET_NAME));
        pairs.push((AV_CHANNEL_BINDINGS, binding.unwrap_or_default().to_vec()));
        pairs.push((AV_TARGET_NAME, utf16(target)));

        let key = account.key();
        let (response, session_key) =
            respond(&key, &nonce, time.unwrap_or(chance.time), &pairs, &chance.client_challenge);
        let lm = match time {
            Some(_) => vec![0; 24],
            None => {
                let proof = mac(&key, &[&nonce, &chance.client_challenge]);
                [&proof[..], &chance.client_challenge].concat()
            }
        };
        let mut encrypted = chance.session_key;
        cipher(&session_key).apply_keystream(&mut encrypted);
        let (mut message, mic) = authenticate(
            &[&lm, &response, &utf16(&account.domain), &utf16(&account.user), &[], &encrypted],
            flags & OFFERED,
        );
        if time.is_some() {
            let whole = mac(&chance.session_key, &[&self.0, challenge, &message]);
            message[mic..mic + 16].copy_from_slice(&whole);
        }
        Ok((message, Session::new(&chance.session_key)))
    }
}

impl Session {
    fn new(key: &[u8; 16]) -> Self {
        Self {
            ours: Direction::new(key, "client-to-server"),
            theirs: Direction::new(key, "server-to-client"),
        }
    }

    /// Encrypts a message in place; returns its signature.
    pub fn seal(&mut self, message: &mut [u8]) -> [u8; SIGNATURE] {
        let plain = self.ours.checksum(message);
        self.ours.sealing.apply_keystream(message);
        self.ours.sign(plain)
    }

    /// Decrypts a message in place.
    ///
    /// # Errors
    /// It is not from whom we talk to, was changed, or is not the next one.
    pub fn unseal(&mut self, message: &mut [u8], signature: &[u8]) -> Result<(), &'static str> {
        self.theirs.sealing.apply_keystream(message);
        let plain = self.theirs.checksum(message);
        match self.theirs.sign(plain)[..] == *signature {
            true => Ok(()),
            false => Err("an encrypted answer was changed on its way"),
        }
    }
}

impl Direction {
    /// SIGNKEY and SEALKEY, MS-NLMP, 3.4.5.
    fn new(key: &[u8; 16], direction: &str) -> Self {
        let derive = |purpose: &str| -> [u8; 16] {
            let magic = format!("session key to {direction} {purpose} key magic constant\0");
            Md5::new_with_prefix(key).chain_update(magic).finalize().into()
        };
        Self { signing: derive("signing"), sealing: cipher(&derive("sealing")), sequence: 0 }
    }

    fn checksum(&self, message: &[u8]) -> [u8; 8] {
        let whole = mac(&self.signing, &[&self.sequence.to_le_bytes(), message]);
        whole.first_chunk().copied().unwrap_or_default()
    }

    /// NTLMSSP_MESSAGE_SIGNATURE with extended session security, MS-NLMP, 3.4.4.2.
    fn sign(&mut self, mut checksum: [u8; 8]) -> [u8; SIGNATURE] {
        self.sealing.apply_keystream(&mut checksum);
        let mut signature = [0; SIGNATURE];
        signature[..4].copy_from_slice(&1_u32.to_le_bytes());
        signature[4..12].copy_from_slice(&checksum);
        signature[12..].copy_from_slice(&self.sequence.to_le_bytes());
        self.sequence = self.sequence.wrapping_add(1);
        signature
    }
}

impl Chance {
    /// As it is now.
    pub fn now() -> Self {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        // Tenths of microseconds since 1601.
        let time = 116_444_736_000_000_000 + (since.as_nanos() / 100) as u64;
        Self { client_challenge: random(), session_key: random(), time }
    }
}

/// Random bytes of the kernel.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut done = 0;
    while done < N {
        // It fails only before the kernel has any, and is interrupted only by signals.
        done += rustix::rand::getrandom(&mut bytes[done..], rustix::rand::GetRandomFlags::empty())
            .unwrap_or(0);
    }
    bytes
}

/// The hash of a TLS channel whose certificate has this SHA-256 (RFC 5929, `tls-server-end-point`), as NTLM takes it: MD5 of
/// a gss_channel_bindings_struct with nothing but application data.
pub(super) fn channel(certificate: &[u8; 32]) -> [u8; 16] {
    let data = [&b"tls-server-end-point:"[..], certificate].concat();
    let length = (data.len() as u32).to_le_bytes();
    Md5::new_with_prefix([0; 16]).chain_update(length).chain_update(data).finalize().into()
}

/// NTLMv2_RESPONSE and the session's base key, MS-NLMP, 3.3.2.
fn respond(
    key: &[u8; 16],
    server_challenge: &[u8; 8],
    time: u64,
    pairs: &[(u16, Vec<u8>)],
    client_challenge: &[u8; 8],
) -> (Vec<u8>, [u8; 16]) {
    let mut blob = vec![1, 1, 0, 0, 0, 0, 0, 0];
    blob.extend(time.to_le_bytes());
    blob.extend(client_challenge);
    blob.extend([0; 4]);
    for (id, value) in pairs {
        blob.extend(id.to_le_bytes());
        blob.extend((value.len() as u16).to_le_bytes());
        blob.extend(value);
    }
    blob.extend([0; 8]);
    let proof = mac(key, &[server_challenge, &blob]);
    ([&proof[..], &blob].concat(), mac(key, &[&proof]))
}

/// AUTHENTICATE_MESSAGE of these fields in the order of their descriptors, and where its integrity code belongs.
fn authenticate(fields: &[&[u8]; 6], flags: u32) -> (Vec<u8>, usize) {
    let mut message = [&MAGIC[..], &3_u32.to_le_bytes()].concat();
    const PAYLOAD: usize = 88;
    let mut offset = PAYLOAD;
    for field in fields {
        let length = (field.len() as u16).to_le_bytes();
        message.extend([length, length].concat());
        message.extend((offset as u32).to_le_bytes());
        offset += field.len();
    }
    message.extend(flags.to_le_bytes());
    message.extend(OUR_VERSION);
    let mic = message.len();
    message.extend([0; 16]);
    message.extend(fields.concat());
    (message, mic)
}

/// The bytes that the descriptor at `at` names.
fn field(message: &[u8], at: usize) -> Option<&[u8]> {
    let length = u16::from_le_bytes(array(message, at)?) as usize;
    let offset = u32::from_le_bytes(array(message, at + 4)?) as usize;
    message.get(offset..offset.checked_add(length)?)
}

/// AV_PAIRs, without the one that ends them.
fn pairs(mut info: &[u8]) -> Option<Vec<(u16, Vec<u8>)>> {
    let mut pairs = Vec::new();
    loop {
        let id = u16::from_le_bytes(array(info, 0)?);
        if id == AV_END {
            return Some(pairs);
        }
        let end = 4 + u16::from_le_bytes(array(info, 2)?) as usize;
        pairs.push((id, info.get(4..end)?.to_vec()));
        info = &info[end..];
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn cipher(key: &[u8; 16]) -> Rc4 {
    <Rc4 as KeyInit>::new_from_slice(key).expect("RC4 takes keys of 16 bytes")
}

fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; 16] {
    let mut mac = Hmac::<Md5>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// Answers what a fuzzer says in a server's place.
pub(super) fn fuzz(bytes: &[u8]) {
    let account = Account::new("user", Secret::new("password"));
    let chance = Chance { client_challenge: [1; 8], session_key: [2; 16], time: 0 };
    let _ = Negotiate::new().answer(bytes, &account, "HTTP/host", None, &chance);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        Account::new("Domain\\User", Secret::new("Password"))
    }

    /// MS-NLMP, 4.2.4: `Server` and `Domain`, time 0.
    fn example() -> (Vec<(u16, Vec<u8>)>, [u8; 8]) {
        let pairs = vec![(2, utf16("Domain")), (1, utf16("Server"))];
        (pairs, [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef])
    }

    #[test]
    fn keys_and_responses_are_those_of_the_specification() {
        // 4.2.4.1.1 to 4.2.4.2.3.
        let key = account().key();
        assert_eq!(key, hex("0c868a403bfd7a93a3001ef22ef02e3f")[..]);
        let (pairs, nonce) = example();
        let (response, session) = respond(&key, &nonce, 0, &pairs, &[0xaa; 8]);
        assert_eq!(response[..16], hex("68cd0ab851e51c96aabc927bebef6a1c"));
        assert_eq!(session, hex("8de40ccadbc14a82f15cb0ad0de95ca3")[..]);
        let mut encrypted = [0x55; 16];
        cipher(&session).apply_keystream(&mut encrypted);
        assert_eq!(encrypted, hex("c5dad2544fc9799094ce1ce90bc9d03e")[..]);
    }

    #[test]
    fn messages_are_sealed_as_the_specification_seals_them() {
        // 4.2.4.4, with the session key 0x55...
        let mut session = Session::new(&[0x55; 16]);
        let mut message = utf16("Plaintext");
        let signature = session.seal(&mut message);
        assert_eq!(message, hex("54e50165bf1936dc996020c1811b0f06fb5f"));
        assert_eq!(signature, hex("010000007fb38ec5c55d497600000000")[..]);
    }

    #[test]
    fn a_changed_message_is_refused() {
        let mut ours = Session::new(&[1; 16]);
        let mut server = Session::new(&[1; 16]);
        std::mem::swap(&mut server.ours, &mut server.theirs);
        for text in [&b"first"[..], b"second"] {
            let mut message = text.to_vec();
            let signature = server.seal(&mut message);
            ours.unseal(&mut message, &signature).unwrap();
            assert_eq!(message, text);
        }
        let mut message = b"third".to_vec();
        let signature = server.seal(&mut message);
        message[0] ^= 1;
        assert!(ours.unseal(&mut message, &signature).is_err());
    }

    #[test]
    fn challenges_that_are_none_are_refused() {
        let negotiate = Negotiate::new();
        let answer = |challenge: &[u8]| {
            negotiate.answer(challenge, &account(), "HTTP/host", None, &Chance::now()).err()
        };
        let good = challenge(DEMANDED);
        assert_eq!(answer(&good), None);
        for length in 0..good.len() {
            assert!(answer(&good[..length]).is_some(), "{length}");
        }
        let weak = challenge(DEMANDED & !BITS_128);
        assert!(answer(&weak).unwrap().contains("not safe"));
    }

    fn challenge(flags: u32) -> Vec<u8> {
        let (pairs, nonce) = example();
        let mut message = [&MAGIC[..], &2_u32.to_le_bytes(), &[0; 8]].concat();
        message.extend(flags.to_le_bytes());
        message.extend(nonce);
        message.extend([0; 8]);
        let mut info = Vec::new();
        for (id, value) in pairs {
            info.extend(id.to_le_bytes());
            info.extend((value.len() as u16).to_le_bytes());
            info.extend(value);
        }
        info.extend([0; 4]);
        message.extend([info.len() as u16, info.len() as u16].map(u16::to_le_bytes).concat());
        message.extend(48_u32.to_le_bytes());
        message.extend(info);
        message
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<_> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
        digits.chunks_exact(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
    }
}
