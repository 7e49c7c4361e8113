"""Runs the program that a stack asks for: its `dpac:program`, else the program of the stack's own name. See README.md."""

import programs
import pulumi

programs.choose(pulumi.Config("dpac").get("program"), pulumi.get_stack())()
