//! For people.

use std::fmt::{self, Display, Formatter};

use super::{Explained, Origin, TakenServers, Tried, taken::Taken};

impl Display for Origin {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            object,
            field,
            file,
            line,
        } = self;
        let space = if field.is_empty() { "" } else { " " };
        write!(f, "{object}{space}{field}, {file}:{line}")
    }
}

impl Display for Explained {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.request)?;
        if let Some(name) = &self.routes {
            writeln!(f, "routes {name}")?;
        }
        for host in &self.virtual_hosts {
            let why = match &host.domain {
                Some(domain) if host.is_taken => format!("taken by {domain:?}"),
                Some(domain) => format!("{domain:?} fits, another fits better"),
                None => "no domain fits".to_owned(),
            };
            writeln!(f, "virtual host {}: {why}", host.name)?;
        }
        for tried in self.tried.iter().chain(&self.left_out) {
            write_tried(f, tried)?;
            if tried.is_taken
                && let Some(taken) = &self.taken
            {
                write_taken(f, taken)?;
            }
        }
        match &self.failure {
            Some(failure) => writeln!(f, "{failure}"),
            None => Ok(()),
        }
    }
}

fn write_tried(f: &mut Formatter<'_>, tried: &Tried) -> fmt::Result {
    let origin = tried.origin.as_ref();
    let origin = origin.map_or_else(|| "nothing declares it".to_owned(), ToString::to_string);
    writeln!(f, "  route {}: {} ({origin})", tried.name, tried.why)
}

fn write_servers(f: &mut Formatter<'_>, servers: &TakenServers) -> fmt::Result {
    let TakenServers {
        count,
        takes,
        filters,
        objects,
    } = servers;
    match count {
        1 => writeln!(f, "      1 server takes {takes}")?,
        count => writeln!(f, "      {count} servers take {takes}")?,
    }
    for (name, what) in filters {
        writeln!(f, "        filter {name}: {what}")?;
    }
    for object in objects {
        writeln!(f, "        from {object}")?;
    }
    Ok(())
}

fn write_taken(f: &mut Formatter<'_>, taken: &Taken) -> fmt::Result {
    if let Some(answer) = &taken.answer {
        writeln!(f, "    answers: {answer}")?;
    }
    for (what, how) in &taken.changes {
        writeln!(f, "    {what}: {how}")?;
    }
    for (name, what) in &taken.filters {
        writeln!(f, "    filter {name}: {what}")?;
    }
    for cluster in &taken.clusters {
        let (name, weight, of) = (&cluster.name, cluster.weight, cluster.of);
        let count = cluster.endpoints;
        let plural = if count == 1 { "" } else { "s" };
        writeln!(
            f,
            "    cluster {name}: {weight} of {of}, {count} endpoint{plural}"
        )?;
        for (what, how) in &cluster.policies {
            writeln!(f, "      {what}: {how}")?;
        }
        for (name, what) in &cluster.filters {
            writeln!(f, "      filter {name}: {what}")?;
        }
        for object in &cluster.objects {
            writeln!(f, "      from {object}")?;
        }
        for servers in &cluster.servers {
            write_servers(f, servers)?;
        }
    }
    if taken.answer.is_some() {
        return Ok(());
    }
    match taken.timeout {
        Some(timeout) => writeln!(f, "    timeout: {timeout}s")?,
        None => writeln!(f, "    timeout: none")?,
    }
    let Some(retries) = &taken.retries else {
        return writeln!(f, "    retries: none");
    };
    let codes = match &retries.status_codes[..] {
        [] => String::new(),
        codes => format!(" {codes:?}"),
    };
    writeln!(
        f,
        "    retries: {} on {}{codes}, after {}s to {}s",
        retries.count, retries.on, retries.backoff, retries.backoff_max
    )?;
    if let Some(limit) = retries.timeout {
        writeln!(f, "    timeout of each attempt: {limit}s")?;
    }
    Ok(())
}
