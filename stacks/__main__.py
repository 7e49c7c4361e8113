"""Protection declared by a stack's configuration alone, without a program of one's own. See stacks/README.md."""

import pulumi
from declared import declare

config = pulumi.Config("dpac")
declare(config.get_object("targets") or {}, config.get_object("groups") or {})
