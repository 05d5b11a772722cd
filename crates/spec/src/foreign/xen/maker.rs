//! `ova.xml` as XenServer writes it, made for the tests here and for those of whole VMs: objects of the XenAPI as values of
//! XML-RPC.

/// A structure, whose values are XML.
pub fn structure(fields: &[(&str, &str)]) -> String {
    let member = |(name, value): &(&str, &str)| {
        format!("<member><name>{name}</name><value>{value}</value></member>")
    };
    format!("<struct>{}</struct>", fields.iter().map(member).collect::<String>())
}

/// An array of values.
pub fn array<'a>(values: impl IntoIterator<Item = &'a str>) -> String {
    let values = values.into_iter().map(|value| format!("<value>{value}</value>"));
    format!("<array><data>{}</data></array>", values.collect::<String>())
}

/// An object of the XenAPI with its fields.
pub fn object(class: &str, id: &str, fields: &[(&str, &str)]) -> String {
    structure(&[("class", class), ("id", id), ("snapshot", &structure(fields))])
}

/// The document around the objects.
pub fn export(objects: &[String]) -> String {
    let version = structure(&[("product_version", "8.2.0"), ("export_vsn", "2")]);
    let objects = array(objects.iter().map(String::as_str));
    format!("<value>{}</value>", structure(&[("version", &version), ("objects", &objects)]))
}
