"""The harness called from the workstation: baselines, other engines, measure and design again."""
