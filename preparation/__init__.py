"""From raw data sets to tar shards that Energon reads."""
