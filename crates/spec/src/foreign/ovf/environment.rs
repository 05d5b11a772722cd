//! What a package's guest is told about how it was deployed.
//!
//! Source: DMTF DSP0243 2.1.1, section 11; the schema is DSP8027. It comes on a disk, which is the one transport that the
//! standard knows; VMware's other one wants VMware's tools.

use crate::foreign::Description;
use crate::foreign::export::xml;
use crate::{Error, Result, iso9660};

/// The transport of a disk, as the package names it.
const TRANSPORT: &str = "iso";
const LABEL: &str = "OVF ENV";
const FILE: &str = "ovf-env.xml";
const NAMESPACE: &str = "http://schemas.dmtf.org/ovf/environment/1";

impl Description {
    /// Whether the guest looks for its package's properties on a disk.
    pub fn wants_environment(&self) -> bool {
        !self.properties.is_empty() && self.transports.iter().any(|name| name == TRANSPORT)
    }

    /// An ISO 9660 image that tells the guest the package's properties: `values` by their full keys, the others as the
    /// package has them.
    ///
    /// # Errors
    /// The package has no such property.
    pub fn environment(&self, values: &[(String, String)]) -> Result<Vec<u8>> {
        for (key, value) in values {
            if !self.properties.iter().any(|one| one.key == *key) {
                let known: Vec<_> = self.properties.iter().map(|one| one.key.as_str()).collect();
                let message = match &known[..] {
                    [] => format!("There is no property `{key}`, nor any other"),
                    known => {
                        format!("There is no property `{key}`; there are {}", known.join(", "))
                    }
                };
                return Err(Error::Option { text: format!("{key}={value}"), message });
            }
        }
        let mut properties = String::new();
        for one in &self.properties {
            let given = values.iter().rev().find(|(key, _)| *key == one.key);
            let value = given.map(|(_, value)| value).or(one.value.as_ref());
            properties.push_str(&format!(
                "    <Property oe:key=\"{}\" oe:value=\"{}\"/>\n",
                xml(&one.key),
                xml(value.map_or("", String::as_str))
            ));
        }
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <Environment xmlns=\"{NAMESPACE}\" xmlns:oe=\"{NAMESPACE}\" oe:id=\"{}\">\n  \
             <PlatformSection>\n    <Kind>Omnivisor</Kind>\n    <Version>{}</Version>\n    \
             <Vendor>Omnivisor</Vendor>\n    <Locale>en</Locale>\n  </PlatformSection>\n  \
             <PropertySection>\n{properties}  </PropertySection>\n</Environment>\n",
            xml(self.name.as_deref().unwrap_or("vm")),
            env!("CARGO_PKG_VERSION"),
        );
        Ok(iso9660::image(LABEL, &[(FILE, text.as_bytes())]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::foreign::Property;
    use crate::foreign::xml::parse;

    fn package() -> Description {
        let property = |key: &str, value: Option<&str>| Property {
            key: key.into(),
            value: value.map(Into::into),
            ..Property::default()
        };
        Description {
            name: Some("a \"b\"".into()),
            properties: vec![property("net.ip.0", Some("dhcp")), property("hostname", None)],
            transports: vec!["com.vmware.guestInfo".into(), "iso".into()],
            ..Description::default()
        }
    }

    #[test]
    fn values_are_the_packages_or_those_that_were_given() {
        let vm = package();
        assert!(vm.wants_environment());
        assert!(!Description { transports: Vec::new(), ..vm.clone() }.wants_environment());
        let given = [("hostname".to_owned(), "<web> & \"db\"".to_owned())];
        let image = vm.environment(&given).unwrap();
        let text = String::from_utf8_lossy(&image[21 * 2048..]);
        let root = parse(text.trim_end_matches('\0').as_bytes(), FILE).unwrap();
        let section = root.child("PropertySection").unwrap();
        let found: Vec<_> = section
            .children("Property")
            .map(|one| (one.attribute("key").unwrap(), one.attribute("value").unwrap()))
            .collect();
        assert_eq!(found, [("net.ip.0", "dhcp"), ("hostname", "<web> & \"db\"")]);
        assert_eq!(root.attribute("id"), Some("a \"b\""));
    }

    #[test]
    fn an_unknown_property_is_refused_with_those_there_are() {
        let error = package().environment(&[("name".into(), "web".into())]).unwrap_err();
        assert_eq!(error.to_string(), "There is no property `name`; there are net.ip.0, hostname");
    }
}
