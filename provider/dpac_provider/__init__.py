"""What runs inside `pulumi up`: handlers that know no Pulumi, and a thin adapter for dynamic resources.

values, inputs, checking     the arguments of each resource, checked and brought to one spelling
handler                      what a handler is, and what it answers
target, group, ready,
checkpoint, drill            one handler each: check, diff, create, read, update, delete
session                      a client for the site that a resource belongs to
codec, dynamic, resources    Pulumi: values in and out, the provider classes, the resource classes
"""
