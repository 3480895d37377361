//! Names of the mesh. A service's name, in any of its forms, has its virtual address; so has the name with a search
//! domain of the host's after it, so that a client which tries those first need not ask again. Of a name that is the
//! mesh's nothing else exists: other types are answered with no data, and nobody else is asked.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::time::Instant;

use super::plain;
use crate::config::virtual_address::VirtualAddress;
use crate::discovery::Shared;
use crate::discovery::on_demand::{OnDemand, Resolved};
use crate::error::Error;

/// For the control plane to say whether a name is one of the mesh. Shorter than a client waits before it asks again
/// (5 s), so that there is time to ask an upstream.
const LONGEST: Duration = Duration::from_secs(1);

/// The names of the mesh, as a sidecar knows or learns them.
#[derive(Debug)]
pub(super) struct Mesh {
    names: Arc<OnDemand>,
    discovery: Shared,
    ttl: u32,
}

/// What is to be said of a question.
#[derive(Debug)]
pub(super) enum Verdict {
    /// This.
    Answer(Message),
    /// It would be for us to say, and we do not know.
    Unsure,
    /// It is not ours.
    Elsewhere,
}

/// What a question comes to.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// The name is a service's.
    Service(Arc<VirtualAddress>),
    /// It is another name for one: this.
    Alias(String, Arc<VirtualAddress>),
    /// It belongs to us and exists, without an address.
    Empty,
    /// It belongs to us and does not exist.
    Nothing,
}

impl Mesh {
    pub(super) fn new(names: Arc<OnDemand>, discovery: Shared, ttl: Duration) -> Self {
        Self { names, discovery, ttl: u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX) }
    }

    /// Names that are known, with their addresses.
    pub(super) fn names(&self) -> Vec<(Arc<str>, Arc<VirtualAddress>)> {
        self.names.addresses()
    }

    pub(super) async fn answer(&self, question: &Query) -> Verdict {
        let Some(name) = plain(question) else { return Verdict::Elsewhere };
        if let Some(address) = reversed(question.name()) {
            return self.reverse(question, address).await;
        }
        let naming = self.names.naming();
        if naming.is_in_zone(&name) {
            let short = naming.within_zone(&name);
            let found = if short == name { Ok(None) } else { self.look_up(short).await };
            let found = match found {
                Ok(Some(address)) => Found::Service(address),
                Ok(None) => Found::Empty,
                Err(Error::UnknownName) => Found::Nothing,
                Err(_) => return Verdict::Unsure,
            };
            return self.say(question, found, naming.zone.as_str());
        }
        // Both at once: one round trip where neither is known.
        let short = naming.unsearched(&name);
        let of_short = async {
            match short {
                Some(short) => self.look_up(short).await,
                None => Err(Error::UnknownName),
            }
        };
        let (whole, short_found) = futures_util::future::join(self.look_up(&name), of_short).await;
        let found = match (whole, short_found, short) {
            (Ok(Some(address)), ..) => Found::Service(address),
            (_, Ok(Some(address)), Some(short)) => Found::Alias(short.to_owned(), address),
            _ => return Verdict::Elsewhere,
        };
        self.say(question, found, &name)
    }

    /// What a name resolves to. Without a control plane only what is known is known.
    async fn look_up(&self, name: &str) -> Resolved {
        let now = Instant::now();
        if let Some(known) = self.names.known_address(name, now) {
            return known;
        }
        if !self.discovery.is_connected() {
            return Err(Error::NameTimeout);
        }
        self.names.address(name, now, LONGEST).await
    }

    /// The name of a virtual address.
    async fn reverse(&self, question: &Query, address: IpAddr) -> Verdict {
        if !self.names.is_virtual(address) {
            return Verdict::Elsewhere;
        }
        let name = match self.names.name_of(address) {
            Some(name) => Ok(Some(name)),
            // The control plane has a listener of that name.
            None => self.look_up(&address.to_string()).await.map(|found| Some(found?.name.clone())),
        };
        let parent = question.name().base_name();
        let (code, target) = match name {
            Ok(Some(name)) => match absolute(&name) {
                Some(target) => (ResponseCode::NoError, Some(target)),
                None => return Verdict::Unsure,
            },
            Ok(None) | Err(Error::UnknownName) => (ResponseCode::NXDomain, None),
            Err(_) => return Verdict::Unsure,
        };
        let mut answer = authoritative(code);
        match target {
            Some(target) if matches!(question.query_type(), RecordType::PTR | RecordType::ANY) => {
                answer.add_answer(self.record(question.name(), RData::PTR(PTR(target))));
            }
            _ => {
                answer.add_authority(self.soa(&parent));
            }
        }
        Verdict::Answer(answer)
    }

    /// The answer, from the zone that a name is in: our own, or the name itself.
    fn say(&self, question: &Query, found: Found, zone: &str) -> Verdict {
        let Some(zone) = absolute(zone) else { return Verdict::Elsewhere };
        let mut answer = authoritative(ResponseCode::NoError);
        let mut owner = question.name().clone();
        let mut apex = zone;
        let address = match found {
            Found::Service(address) => Some(address),
            Found::Alias(target, address) => {
                let Some(target) = absolute(&target) else { return Verdict::Elsewhere };
                answer.add_answer(self.record(&owner, RData::CNAME(CNAME(target.clone()))));
                apex = target.clone();
                owner = target;
                Some(address)
            }
            Found::Empty => None,
            Found::Nothing => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                None
            }
        };
        let asked = question.query_type();
        let before = answer.answers.len();
        let is = |ty| asked == ty || asked == RecordType::ANY;
        if let Some(address) = &address {
            let v4 = address.v4.filter(|_| is(RecordType::A)).map(|v4| RData::A(A(v4)));
            let v6 = address.v6.filter(|_| is(RecordType::AAAA)).map(|v6| RData::AAAA(AAAA(v6)));
            for data in v4.into_iter().chain(v6) {
                answer.add_answer(self.record(&owner, data));
            }
        }
        if asked == RecordType::SOA && owner == apex && answer.metadata.response_code == ResponseCode::NoError
        {
            answer.add_answer(self.soa(&apex));
        }
        if asked != RecordType::CNAME && answer.answers.len() == before {
            answer.add_authority(self.soa(&apex));
        }
        Verdict::Answer(answer)
    }

    fn record(&self, owner: &Name, data: RData) -> Record {
        Record::from_rdata(owner.clone(), self.ttl, data)
    }

    /// Says how long it may be remembered that there is nothing (RFC 2308): as long as what there is.
    fn soa(&self, zone: &Name) -> Record {
        let ttl = i32::try_from(self.ttl).unwrap_or(i32::MAX);
        let contact = Name::from_ascii("nobody.invalid.").unwrap_or_default();
        let soa = SOA::new(zone.clone(), contact, 1, ttl, ttl, ttl, self.ttl);
        self.record(zone, RData::SOA(soa))
    }
}

fn authoritative(code: ResponseCode) -> Message {
    let mut message = Message::error_msg(0, OpCode::Query, code);
    message.metadata.authoritative = true;
    message
}

fn absolute(name: &str) -> Option<Name> {
    Name::from_ascii(format!("{name}.")).ok()
}

/// The address that a name under `in-addr.arpa` or `ip6.arpa` stands for.
fn reversed(name: &Name) -> Option<IpAddr> {
    let mut name = name.clone();
    name.set_fqdn(true);
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}
