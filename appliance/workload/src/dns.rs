//! Answers questions of the DNS (RFC 1035) from a table of names. What is not in the table may be a name outside, which whoever has
//! the table decides; no question of a workload is ever passed on to another server.
//!
//! Whoever asks is a workload, and hostile. One question of at most 271 bytes is read; what follows it in a message (EDNS,
//! RFC 6891) is not looked at, which its sender sees in the answer. A message that is no question is not answered, so that
//! two servers can never be made to talk to each other.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The most that an answer over UDP holds without EDNS (RFC 1035 §4.2.1).
pub(crate) const UDP_LIMIT: usize = 512;
/// Seconds for which an answer may be kept. An address is its service's for as long as the appliance runs.
const TTL: u32 = 60;
/// Bytes of a header.
const HEADER: usize = 12;
/// Bytes of a name on the wire, its last zero included, and of a label (RFC 1035 §2.3.4).
const MAX_NAME: usize = 255;
/// See [`MAX_NAME`].
const MAX_LABEL: u8 = 63;

/// QR, AA and RA: an answer, from who decides it; recursion is offered, since clients complain when it is not.
const ANSWER: u16 = 0x8480;
/// TC: there was more.
const TRUNCATED: u16 = 0x0200;
/// RD and the kind of request, which an answer repeats.
const REPEATED: u16 = 0x7900;
const QUERY: u16 = 0x8000;
const OPCODE: u16 = 0x7800;

const FORMAT_ERROR: u16 = 1;
const SERVER_FAILURE: u16 = 2;
const NO_SUCH_NAME: u16 = 3;
const NOT_IMPLEMENTED: u16 = 4;
const REFUSED: u16 = 5;

const A: u16 = 1;
const PTR: u16 = 12;
const ANY: u16 = 255;
const IN: u16 = 1;

/// What is known: addresses by names, and names by addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Keys in lower case; addresses in the order in which they were added, each once.
    addresses: BTreeMap<String, Vec<Ipv4Addr>>,
    /// The first name that an address was added under.
    names: BTreeMap<Ipv4Addr, String>,
}

impl Names {
    /// Adds an address to those of a name. A name may have several, and an address too; asked for its name it gives the
    /// first.
    pub fn add(&mut self, name: &str, address: Ipv4Addr) {
        let addresses = self.addresses.entry(name.to_ascii_lowercase()).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
        self.names.entry(address).or_insert_with(|| name.to_ascii_lowercase());
    }

    /// The addresses of a name; none when it is not known.
    pub fn addresses(&self, name: &str) -> &[Ipv4Addr] {
        self.addresses.get(&name.to_ascii_lowercase()).map(Vec::as_slice).unwrap_or_default()
    }

    /// What to say to a message, in at most `limit` bytes (512 or more). `None` for what is no question.
    pub(crate) fn answer(&self, message: &[u8], limit: usize) -> Option<Answered> {
        let id = u16_at(message, 0)?;
        let flags = u16_at(message, 2)?;
        let questions = u16_at(message, 4)?;
        let body = message.get(HEADER..)?;
        if flags & QUERY != 0 {
            return None;
        }
        let reply = Reply { id, flags: ANSWER | (flags & REPEATED), limit };
        if flags & OPCODE != 0 {
            return Some(Answered::Whole(reply.refuse(NOT_IMPLEMENTED)));
        }
        let Some(question) = Question::read(body).filter(|_| questions == 1) else {
            return Some(Answered::Whole(reply.refuse(FORMAT_ERROR)));
        };
        if ![IN, ANY].contains(&question.class) {
            return Some(Answered::Whole(reply.refuse(REFUSED)));
        }
        if let Some(records) = self.records(&question) {
            return Some(Answered::Whole(reply.with(&question, 0, &records)));
        }
        Some(match question.name.as_deref().filter(|name| is_outside(name)) {
            Some(name) => {
                Answered::Outside(Outside { name: name.to_owned(), question: question.owned(), reply })
            }
            None => Answered::Whole(reply.with(&question, NO_SUCH_NAME, &[])),
        })
    }

    /// What is known of a name in the kind that was asked for. `None`: there is no such name.
    fn records(&self, question: &Question<'_>) -> Option<Vec<Record>> {
        let name = question.name.as_deref()?;
        if let Some(addresses) = self.addresses.get(name) {
            let asked = [A, ANY].contains(&question.kind);
            return Some(
                addresses.iter().filter(|_| asked).map(|address| Record::address(*address)).collect(),
            );
        }
        let known = self.names.get(&reversed(name)?)?;
        let asked = [PTR, ANY].contains(&question.kind);
        Some(Record::name(known).into_iter().filter(|_| asked).collect())
    }
}

/// What the table says to a question.
#[derive(Debug)]
pub(crate) enum Answered {
    /// The whole answer.
    Whole(Vec<u8>),
    /// Somebody else decides.
    Outside(Outside),
}

/// A question for a name that is nobody's here and could be somebody's outside.
#[derive(Debug)]
pub(crate) struct Outside {
    /// In lower case, with a dot in it.
    pub(crate) name: String,
    /// The question that the answer repeats.
    question: Question<'static>,
    /// What the answer has.
    reply: Reply,
}

impl Outside {
    /// The name has this address; other kinds of records it has none of.
    pub(crate) fn address(&self, address: Ipv4Addr) -> Vec<u8> {
        let asked = [A, ANY].contains(&self.question.kind);
        let records: Vec<Record> = asked.then(|| Record::address(address)).into_iter().collect();
        self.reply.with(&self.question, 0, &records)
    }

    /// There is no such name.
    pub(crate) fn none(&self) -> Vec<u8> {
        self.reply.with(&self.question, NO_SUCH_NAME, &[])
    }

    /// Nobody can say at the moment.
    pub(crate) fn failed(&self) -> Vec<u8> {
        self.reply.with(&self.question, SERVER_FAILURE, &[])
    }
}

/// Whether a name could be one of the DNS outside: with a dot, and not of the zone that turns addresses into names.
fn is_outside(name: &str) -> bool {
    name.contains('.') && name.rsplit('.').next() != Some("arpa")
}

/// The address that a name like `9.1.1.10.in-addr.arpa` asks for (RFC 1035 §3.5).
fn reversed(name: &str) -> Option<Ipv4Addr> {
    let address: Ipv4Addr = name.strip_suffix(".in-addr.arpa")?.parse().ok()?;
    Some(Ipv4Addr::from(u32::from(address).swap_bytes()))
}

/// One question, as it stands in a message.
#[derive(Debug)]
struct Question<'m> {
    /// Its own bytes, which the answer repeats.
    bytes: Cow<'m, [u8]>,
    /// In lower case, without the root's dot. `None` for one that nothing here can be called.
    name: Option<String>,
    kind: u16,
    class: u16,
}

impl<'m> Question<'m> {
    /// Reads the question that the body starts with. A pointer is refused: there is nothing before a question to point to.
    fn read(body: &'m [u8]) -> Option<Self> {
        let mut labels: Vec<&str> = Vec::new();
        let mut plain = true;
        let mut at = 0_usize;
        loop {
            let length = *body.get(at)?;
            at = at.checked_add(1)?;
            if length == 0 {
                break;
            }
            let end = at.checked_add(length.into())?;
            let label = body.get(at..end)?;
            // One byte is left for the last zero.
            if length > MAX_LABEL || end >= MAX_NAME {
                return None;
            }
            // A dot inside a label would be another name's text.
            match std::str::from_utf8(label) {
                Ok(text) if !text.contains('.') => labels.push(text),
                _ => plain = false,
            }
            at = end;
        }
        let end = at.checked_add(4)?;
        Some(Self {
            bytes: Cow::Borrowed(body.get(..end)?),
            name: plain.then(|| labels.join(".").to_ascii_lowercase()),
            kind: u16_at(body, at)?,
            class: u16_at(body, at.checked_add(2)?)?,
        })
    }

    fn owned(&self) -> Question<'static> {
        let bytes = Cow::Owned(self.bytes.clone().into_owned());
        Question { bytes, name: self.name.clone(), kind: self.kind, class: self.class }
    }
}

/// A record about the name that was asked for.
struct Record {
    kind: u16,
    data: Vec<u8>,
}

impl Record {
    fn address(address: Ipv4Addr) -> Self {
        Self { kind: A, data: address.octets().to_vec() }
    }

    /// `None` for a name that does not fit the wire; a declaration has none.
    fn name(name: &str) -> Option<Self> {
        let mut data = Vec::with_capacity(name.len().saturating_add(2));
        for label in name.split('.') {
            let length = u8::try_from(label.len()).ok().filter(|length| (1..=MAX_LABEL).contains(length))?;
            data.push(length);
            data.extend_from_slice(label.as_bytes());
        }
        data.push(0);
        (data.len() <= MAX_NAME).then_some(Self { kind: PTR, data })
    }

    fn write(&self) -> Vec<u8> {
        // A pointer to the question's name, which starts behind the header (RFC 1035 §4.1.4).
        let mut bytes = vec![0xc0, 0x0c];
        bytes.extend_from_slice(&self.kind.to_be_bytes());
        bytes.extend_from_slice(&IN.to_be_bytes());
        bytes.extend_from_slice(&TTL.to_be_bytes());
        bytes.extend_from_slice(&u16::try_from(self.data.len()).unwrap_or_default().to_be_bytes());
        bytes.extend_from_slice(&self.data);
        bytes
    }
}

/// What every answer to one message has.
#[derive(Debug)]
struct Reply {
    id: u16,
    flags: u16,
    limit: usize,
}

impl Reply {
    /// An answer without the question, which was not understood or not looked at.
    fn refuse(&self, code: u16) -> Vec<u8> {
        self.header(self.flags | code, 0, 0)
    }

    fn with(&self, question: &Question<'_>, code: u16, records: &[Record]) -> Vec<u8> {
        let mut body = question.bytes.clone().into_owned();
        let mut count = 0_u16;
        let mut flags = self.flags | code;
        for record in records.iter().map(Record::write) {
            if HEADER.saturating_add(body.len()).saturating_add(record.len()) > self.limit {
                flags |= TRUNCATED;
                break;
            }
            body.extend_from_slice(&record);
            count = count.saturating_add(1);
        }
        let mut message = self.header(flags, 1, count);
        message.extend_from_slice(&body);
        message
    }

    fn header(&self, flags: u16, questions: u16, answers: u16) -> Vec<u8> {
        [self.id, flags, questions, answers, 0, 0].iter().flat_map(|word| word.to_be_bytes()).collect()
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DB: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 2);
    const WEB: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 3);

    fn names() -> Names {
        let mut names = Names::default();
        names.add("db", DB);
        names.add("postgres.internal", DB);
        names.add("app", DB);
        names.add("app", WEB);
        names.add("app", WEB);
        names
    }

    /// The whole answer, where nothing outside has a name.
    fn whole(names: &Names, message: &[u8], limit: usize) -> Option<Vec<u8>> {
        names.answer(message, limit).map(|answered| match answered {
            Answered::Whole(answer) => answer,
            Answered::Outside(outside) => outside.none(),
        })
    }

    /// A message with one question.
    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend_from_slice(label.as_bytes());
        }
        message.push(0);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&IN.to_be_bytes());
        message
    }

    /// The code of an answer, and the addresses or names in it.
    fn read(answer: &[u8], question: &[u8]) -> (u16, Vec<Vec<u8>>) {
        let flags = u16_at(answer, 2).unwrap();
        assert_eq!(answer[..2], question[..2], "its id");
        assert_eq!(flags & 0xf870 & !TRUNCATED, 0x8400 & 0xf870, "{flags:x}");
        assert_eq!(answer[12..question.len()], question[12..], "its question");
        let mut rest = &answer[question.len()..];
        let records = (0..u16_at(answer, 6).unwrap()).map(|_| {
            let length = usize::from(u16_at(rest, 10).unwrap());
            let data = rest[12..12 + length].to_vec();
            rest = &rest[12 + length..];
            data
        });
        let records = records.collect();
        assert!(rest.is_empty());
        (flags & 15, records)
    }

    fn ask(name: &str, kind: u16) -> (u16, Vec<Vec<u8>>) {
        let question = question(name, kind);
        read(&whole(&names(), &question, UDP_LIMIT).unwrap(), &question)
    }

    #[test]
    fn a_known_name_has_its_addresses_and_nothing_else() {
        assert_eq!(ask("db", A), (0, vec![DB.octets().to_vec()]));
        assert_eq!(ask("DB", A), (0, vec![DB.octets().to_vec()]));
        assert_eq!(ask("postgres.internal", ANY), (0, vec![DB.octets().to_vec()]));
        assert_eq!(ask("app", A), (0, vec![DB.octets().to_vec(), WEB.octets().to_vec()]));
        // AAAA, MX, TXT: there is the name, and none of these.
        for kind in [28, 15, 16] {
            assert_eq!(ask("db", kind), (0, vec![]));
        }
    }

    #[test]
    fn what_is_not_known_does_not_exist() {
        for name in ["web", "internal", "db.example.org", "", "localhost", "db.internal", "in-addr.arpa"] {
            assert_eq!(ask(name, A), (NO_SUCH_NAME, vec![]), "{name}");
        }
    }

    #[test]
    fn a_name_with_a_dot_may_be_one_outside_and_no_other_is_asked_for() {
        let outside = |name: &str, kind: u16| {
            let question = question(name, kind);
            match names().answer(&question, UDP_LIMIT).unwrap() {
                Answered::Outside(outside) => Some((outside, question)),
                Answered::Whole(_) => None,
            }
        };
        for name in [
            "db",
            "web",
            "postgres.internal",
            "2.1.1.10.in-addr.arpa",
            "9.9.9.9.in-addr.arpa",
            "a.IP6.arpa",
            "",
        ] {
            assert!(outside(name, A).is_none(), "{name}");
        }
        let address = Ipv4Addr::new(198, 18, 0, 1);
        let (asked, question) = outside("API.example.org", A).unwrap();
        assert_eq!(asked.name, "api.example.org");
        assert_eq!(read(&asked.address(address), &question), (0, vec![address.octets().to_vec()]));
        assert_eq!(read(&asked.none(), &question), (NO_SUCH_NAME, vec![]));
        assert_eq!(read(&asked.failed(), &question), (SERVER_FAILURE, vec![]));
        // No IPv6, and nothing that would lead to QUIC or to an encrypted server name (AAAA, SVCB, HTTPS).
        for kind in [28, 64, 65] {
            let (asked, question) = outside("api.example.org", kind).unwrap();
            assert_eq!(read(&asked.address(address), &question), (0, vec![]));
        }
    }

    #[test]
    fn a_known_address_has_a_name() {
        assert_eq!(ask("2.1.1.10.in-addr.arpa", PTR), (0, vec![b"\x02db\0".to_vec()]));
        assert_eq!(ask("3.1.1.10.IN-ADDR.arpa", PTR), (0, vec![b"\x03app\0".to_vec()]));
        assert_eq!(ask("2.1.1.10.in-addr.arpa", A), (0, vec![]));
        for name in ["4.1.1.10.in-addr.arpa", "2.1.1.in-addr.arpa", "02.1.1.10.in-addr.arpa", "2.1.1.10"] {
            assert_eq!(ask(name, PTR), (NO_SUCH_NAME, vec![]), "{name}");
        }
    }

    #[test]
    fn a_dot_inside_a_label_is_no_separator() {
        let mut message = question("", A);
        let name = b"\x11postgres.internal\0";
        message.splice(12..13, name.iter().copied());
        assert_eq!(read(&whole(&names(), &message, UDP_LIMIT).unwrap(), &message), (NO_SUCH_NAME, vec![]));
    }

    #[test]
    fn what_is_no_question_is_not_answered_and_what_is_not_understood_is_refused() {
        let names = names();
        let asked = question("db", A);
        assert_eq!(whole(&names, &asked[..11], UDP_LIMIT), None);
        let mut answer = asked.clone();
        answer[2] |= 0x80;
        assert_eq!(whole(&names, &answer, UDP_LIMIT), None, "an answer is not answered");
        let code = |message: &[u8]| u16_at(&whole(&names, message, UDP_LIMIT).unwrap(), 2).unwrap() & 15;
        let changed = |at: usize, value: u8| {
            let mut message = asked.clone();
            message[at] = value;
            message
        };
        assert_eq!(code(&changed(2, 0x28)), NOT_IMPLEMENTED, "an update");
        assert_eq!(code(&changed(5, 2)), FORMAT_ERROR, "two questions");
        assert_eq!(code(&changed(5, 0)), FORMAT_ERROR, "none");
        assert_eq!(code(&changed(12, 0xc0)), FORMAT_ERROR, "a pointer");
        assert_eq!(code(&asked[..asked.len() - 1]), FORMAT_ERROR, "one byte short");
        assert_eq!(code(&changed(asked.len() - 1, 3)), REFUSED, "another class");
        let long = |labels: usize| question(&vec!["a".repeat(49); labels].join("."), A);
        assert_eq!(code(&long(5)), NO_SUCH_NAME);
        assert_eq!(code(&long(6)), FORMAT_ERROR, "longer than a name can be");
        // What stands behind the question is not looked at.
        assert_eq!(code(&[&asked[..], &[0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]].concat()), 0);
    }

    #[test]
    fn what_does_not_fit_says_so() {
        let mut names = Names::default();
        for last in 0..=255 {
            names.add("all", Ipv4Addr::new(10, 1, 1, last));
        }
        let asked = question("all", A);
        let short = whole(&names, &asked, UDP_LIMIT).unwrap();
        assert!(short.len() <= UDP_LIMIT);
        assert_ne!(u16_at(&short, 2).unwrap() & TRUNCATED, 0);
        assert_eq!(read(&short, &asked).1.len(), 30);
        let all = whole(&names, &asked, usize::from(u16::MAX)).unwrap();
        assert_eq!(u16_at(&all, 2).unwrap() & TRUNCATED, 0);
        assert_eq!(read(&all, &asked).1.len(), 256);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// Whatever comes in: nothing, or an answer of bounded size with the same id, that is marked as one.
        #[test]
        fn any_bytes_get_a_bounded_answer_or_none(message in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(answer) = whole(&names(), &message, UDP_LIMIT) {
                prop_assert!((HEADER..=UDP_LIMIT).contains(&answer.len()));
                prop_assert_eq!(&answer[..2], &message[..2]);
                prop_assert!(answer[2] & 0x80 != 0 && message[2] & 0x80 == 0);
            }
        }

        /// Bytes that look like a question, with one changed.
        #[test]
        fn a_question_with_one_change_is_answered(at in 0_usize..32, value: u8, cut in 0_usize..32) {
            let mut message = question("postgres.internal", A);
            if let Some(byte) = message.get_mut(at) {
                *byte = value;
            }
            message.truncate(message.len() - cut.min(message.len()));
            if let Some(answer) = whole(&names(), &message, UDP_LIMIT) {
                prop_assert!((HEADER..=UDP_LIMIT).contains(&answer.len()));
            }
        }

        /// No name but those of the table has an address, whatever it is made of.
        #[test]
        fn only_known_names_have_addresses(name in "[aAbBdDpP]{1,3}|[a-z-]{1,63}([.][a-z0-9]{1,20}){0,3}") {
            let known = !names().addresses(&name).is_empty();
            prop_assert_eq!(ask(&name, A).1.is_empty(), !known);
        }
    }
}
