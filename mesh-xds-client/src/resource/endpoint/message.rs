//! `ClusterLoadAssignment` as it is on the wire, borrowed from there.
//!
//! Stage 3. Endpoints change more often than everything else, and there are more of them, so they are
//! read without generated messages between. The types here have the fields that are looked at, under
//! their names; what they hold is what prost would make of the same bytes. Where a field is only looked
//! at for being set, or is rare, the [reader](Reader::leave) passes over it, and prost then parses the
//! resource too, to tell whether it can be parsed. Prost also finds the words when it cannot.

use std::cell::Cell;

use envoy_types::pb::{
    envoy::{config::endpoint::v3::ClusterLoadAssignment as Proto, r#type::v3::FractionalPercent},
    google::protobuf::Struct,
};
use mesh_core::config::LbMetadata;
use prost::Message;

use super::super::{
    lb_metadata::{NAMESPACE, SOCKET_NAMESPACE, of_struct},
    wire::{Malformed, Reader},
};

type Read<T = ()> = Result<T, Malformed>;

#[derive(Debug, Default, PartialEq)]
pub(in crate::resource) struct ClusterLoadAssignment<'a> {
    pub(in crate::resource) cluster_name: &'a str,
    pub(super) endpoints: Vec<LocalityLbEndpoints<'a>>,
    pub(super) policy: Option<Policy<'a>>,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Policy<'a> {
    pub(super) drop_overloads: Vec<DropOverload<'a>>,
    pub(super) overprovisioning_factor: Option<u32>,
    pub(super) endpoint_stale_after: bool,
    pub(super) weighted_priority_health: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct DropOverload<'a> {
    pub(super) category: &'a str,
    pub(super) drop_percentage: Option<FractionalPercent>,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct LocalityLbEndpoints<'a> {
    pub(super) locality: Locality<'a>,
    pub(super) lb_endpoints: Vec<LbEndpoint<'a>>,
    pub(super) load_balancing_weight: Option<u32>,
    pub(super) priority: u32,
    pub(super) lb_config: Option<LbConfig<'a>>,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Locality<'a> {
    pub(super) region: &'a str,
    pub(super) zone: &'a str,
    pub(super) sub_zone: &'a str,
}

#[derive(Debug, PartialEq)]
pub(super) enum LbConfig<'a> {
    LoadBalancerEndpoints(Vec<LbEndpoint<'a>>),
    LedsClusterLocalityConfig,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct LbEndpoint<'a> {
    pub(super) health_status: i32,
    pub(super) load_balancing_weight: Option<u32>,
    pub(super) host_identifier: Option<HostIdentifier<'a>>,
    pub(super) metadata: Metadata,
}

#[derive(Debug, PartialEq)]
pub(super) enum HostIdentifier<'a> {
    Endpoint(Endpoint<'a>),
    EndpointName,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Endpoint<'a> {
    pub(super) address: Option<SocketAddress<'a>>,
    pub(super) health_check_config: bool,
    pub(super) hostname: &'a str,
    pub(super) additional_addresses: Vec<Option<SocketAddress<'a>>>,
}

/// An address of another kind is none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct SocketAddress<'a> {
    pub(super) address: &'a str,
    /// A named port is none.
    pub(super) port_value: Option<u32>,
}

/// Of `filter_metadata`, what is looked at.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Metadata {
    pub(super) lb: LbMetadata,
    pub(super) socket_labels: LbMetadata,
}

impl<'a> ClusterLoadAssignment<'a> {
    /// Reads a resource; the error is prost's.
    pub(in crate::resource) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let left = Cell::new(false);
        let mut assignment = Self::default();
        let read = assignment.merge(Reader::new(bytes, &left));
        if read.is_ok() && !left.get() {
            return Ok(assignment);
        }
        match (Proto::decode(bytes), read) {
            (Ok(_), Ok(())) => Ok(assignment),
            (Err(error), _) => Err(error.to_string()),
            (Ok(_), Err(Malformed)) => Err("malformed".to_owned()),
        }
    }

    fn merge(&mut self, mut reader: Reader<'a, '_>) -> Read {
        while let Some(key) = reader.next()? {
            match key.number {
                1 => self.cluster_name = reader.text(key)?,
                2 => {
                    let locality = LocalityLbEndpoints::read(reader.message(key)?)?;
                    self.endpoints.push(locality);
                }
                4 => self
                    .policy
                    .get_or_insert_default()
                    .merge(reader.message(key)?)?,
                // `named_endpoints` is a map.
                5 => reader.leave_entry()?,
                _ => reader.skip(key)?,
            }
        }
        Ok(())
    }
}

impl<'a> Policy<'a> {
    fn merge(&mut self, mut reader: Reader<'a, '_>) -> Read {
        while let Some(key) = reader.next()? {
            match key.number {
                2 => {
                    let rule = DropOverload::read(reader.message(key)?)?;
                    self.drop_overloads.push(rule);
                }
                3 => reader.uint32_value(key, &mut self.overprovisioning_factor)?,
                4 => {
                    self.endpoint_stale_after = true;
                    reader.leave(key)?;
                }
                6 => self.weighted_priority_health = reader.bool(key)?,
                _ => reader.skip(key)?,
            }
        }
        Ok(())
    }
}

impl<'a> DropOverload<'a> {
    fn read(mut reader: Reader<'a, '_>) -> Read<Self> {
        let mut rule = Self::default();
        while let Some(key) = reader.next()? {
            match key.number {
                1 => rule.category = reader.text(key)?,
                2 => {
                    let share = rule.drop_percentage.get_or_insert_default();
                    merge_fraction(share, reader.message(key)?)?;
                }
                _ => reader.skip(key)?,
            }
        }
        Ok(rule)
    }
}

fn merge_fraction(fraction: &mut FractionalPercent, mut reader: Reader<'_, '_>) -> Read {
    while let Some(key) = reader.next()? {
        match key.number {
            1 => fraction.numerator = reader.uint32(key)?,
            2 => fraction.denominator = reader.enumeration(key)?,
            _ => reader.skip(key)?,
        }
    }
    Ok(())
}

impl<'a> LocalityLbEndpoints<'a> {
    fn read(mut reader: Reader<'a, '_>) -> Read<Self> {
        let mut place = Self::default();
        while let Some(key) = reader.next()? {
            match key.number {
                1 => place.locality.merge(reader.message(key)?)?,
                2 => {
                    let endpoint = LbEndpoint::read(reader.message(key)?)?;
                    place.lb_endpoints.push(endpoint);
                }
                3 => reader.uint32_value(key, &mut place.load_balancing_weight)?,
                5 => place.priority = reader.uint32(key)?,
                // Proximity.
                6 => reader.uint32_value(key, &mut None)?,
                7 => {
                    let message = reader.message(key)?;
                    let mut list = match place.lb_config.take() {
                        Some(LbConfig::LoadBalancerEndpoints(list)) => list,
                        _ => Vec::new(),
                    };
                    merge_list(&mut list, message)?;
                    place.lb_config = Some(LbConfig::LoadBalancerEndpoints(list));
                }
                8 => {
                    place.lb_config = Some(LbConfig::LedsClusterLocalityConfig);
                    reader.leave(key)?;
                }
                9 => Metadata::default().merge(reader.message(key)?)?,
                _ => reader.skip(key)?,
            }
        }
        Ok(place)
    }
}

fn merge_list<'a>(list: &mut Vec<LbEndpoint<'a>>, mut reader: Reader<'a, '_>) -> Read {
    while let Some(key) = reader.next()? {
        match key.number {
            1 => list.push(LbEndpoint::read(reader.message(key)?)?),
            _ => reader.skip(key)?,
        }
    }
    Ok(())
}

impl<'a> Locality<'a> {
    fn merge(&mut self, mut reader: Reader<'a, '_>) -> Read {
        while let Some(key) = reader.next()? {
            match key.number {
                1 => self.region = reader.text(key)?,
                2 => self.zone = reader.text(key)?,
                3 => self.sub_zone = reader.text(key)?,
                _ => reader.skip(key)?,
            }
        }
        Ok(())
    }
}

impl<'a> LbEndpoint<'a> {
    fn read(mut reader: Reader<'a, '_>) -> Read<Self> {
        let mut endpoint = Self::default();
        while let Some(key) = reader.next()? {
            match key.number {
                1 => {
                    let message = reader.message(key)?;
                    let mut host = match endpoint.host_identifier.take() {
                        Some(HostIdentifier::Endpoint(host)) => host,
                        _ => Endpoint::default(),
                    };
                    host.merge(message)?;
                    endpoint.host_identifier = Some(HostIdentifier::Endpoint(host));
                }
                2 => endpoint.health_status = reader.enumeration(key)?,
                3 => endpoint.metadata.merge(reader.message(key)?)?,
                4 => reader.uint32_value(key, &mut endpoint.load_balancing_weight)?,
                5 => {
                    reader.text(key)?;
                    endpoint.host_identifier = Some(HostIdentifier::EndpointName);
                }
                _ => reader.skip(key)?,
            }
        }
        Ok(endpoint)
    }
}

impl<'a> Endpoint<'a> {
    fn merge(&mut self, mut reader: Reader<'a, '_>) -> Read {
        while let Some(key) = reader.next()? {
            match key.number {
                1 => merge_address(&mut self.address, reader.message(key)?)?,
                2 => {
                    self.health_check_config = true;
                    reader.leave(key)?;
                }
                3 => self.hostname = reader.text(key)?,
                4 => {
                    let address = additional_address(reader.message(key)?)?;
                    self.additional_addresses.push(address);
                }
                // `observability_name`.
                5 => _ = reader.text(key)?,
                _ => reader.skip(key)?,
            }
        }
        Ok(())
    }
}

fn additional_address<'a>(mut reader: Reader<'a, '_>) -> Read<Option<SocketAddress<'a>>> {
    let mut address = None;
    while let Some(key) = reader.next()? {
        match key.number {
            1 => merge_address(&mut address, reader.message(key)?)?,
            _ => reader.skip(key)?,
        }
    }
    Ok(address)
}

/// Of the kinds of addresses the last one stays.
fn merge_address<'a>(address: &mut Option<SocketAddress<'a>>, mut reader: Reader<'a, '_>) -> Read {
    while let Some(key) = reader.next()? {
        match key.number {
            1 => address
                .get_or_insert_default()
                .merge(reader.message(key)?)?,
            // `pipe` and `envoy_internal_address`.
            2 | 3 => {
                *address = None;
                reader.leave(key)?;
            }
            _ => reader.skip(key)?,
        }
    }
    Ok(())
}

impl<'a> SocketAddress<'a> {
    fn merge(&mut self, mut reader: Reader<'a, '_>) -> Read {
        while let Some(key) = reader.next()? {
            match key.number {
                // `protocol`.
                1 => _ = reader.enumeration(key)?,
                2 => self.address = reader.text(key)?,
                3 => self.port_value = Some(reader.uint32(key)?),
                // `named_port`.
                4 => {
                    reader.text(key)?;
                    self.port_value = None;
                }
                // `resolver_name` and `network_namespace_filepath`.
                5 | 7 => _ = reader.text(key)?,
                // `ipv4_compat`.
                6 => _ = reader.bool(key)?,
                _ => reader.skip(key)?,
            }
        }
        Ok(())
    }
}

impl Metadata {
    fn merge(&mut self, mut reader: Reader<'_, '_>) -> Read {
        while let Some(key) = reader.next()? {
            match key.number {
                1 => self.merge_filter_metadata(reader.entry()?)?,
                // `typed_filter_metadata` is a map.
                2 => reader.leave_entry()?,
                _ => reader.skip(key)?,
            }
        }
        Ok(())
    }

    fn merge_filter_metadata(&mut self, entry: Reader<'_, '_>) -> Read {
        let mut namespace = "";
        let mut reader = entry;
        while let Some(key) = reader.next()? {
            match key.number {
                1 => namespace = reader.text(key)?,
                2 => check_struct(reader.message(key)?)?,
                _ => reader.skip(key)?,
            }
        }
        match namespace {
            NAMESPACE => self.lb = labels(entry)?,
            SOCKET_NAMESPACE => self.socket_labels = labels(entry)?,
            _ => {}
        }
        Ok(())
    }
}

/// The value in an entry of a map of structs.
fn labels(mut entry: Reader<'_, '_>) -> Read<LbMetadata> {
    let mut value = Struct::default();
    while let Some(key) = entry.next()? {
        match key.number {
            2 => value.merge(entry.bytes(key)?).map_err(|_| Malformed)?,
            _ => entry.skip(key)?,
        }
    }
    Ok(of_struct(&value))
}

/// Whether it can be parsed: most of them are not looked at.
fn check_struct(mut reader: Reader<'_, '_>) -> Read {
    while let Some(key) = reader.next()? {
        match key.number {
            1 => {
                let mut entry = reader.entry()?;
                while let Some(key) = entry.next()? {
                    match key.number {
                        1 => _ = entry.text(key)?,
                        2 => check_value(entry.message(key)?)?,
                        _ => entry.skip(key)?,
                    }
                }
            }
            _ => reader.skip(key)?,
        }
    }
    Ok(())
}

fn check_value(mut reader: Reader<'_, '_>) -> Read {
    while let Some(key) = reader.next()? {
        match key.number {
            1 => _ = reader.enumeration(key)?,
            2 => reader.double(key)?,
            3 => _ = reader.text(key)?,
            4 => _ = reader.bool(key)?,
            5 => check_struct(reader.message(key)?)?,
            6 => {
                let mut list = reader.message(key)?;
                while let Some(key) = list.next()? {
                    match key.number {
                        1 => check_value(list.message(key)?)?,
                        _ => list.skip(key)?,
                    }
                }
            }
            _ => reader.skip(key)?,
        }
    }
    Ok(())
}
