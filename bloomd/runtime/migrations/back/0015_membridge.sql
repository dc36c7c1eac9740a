-- loses: agents of the Membridge control plane that bloomd serves
--  FROM membridge_agents
-- loses: projects of that control plane
--  FROM membridge_projects
-- loses: nodes of its projects
--  FROM membridge_nodes
-- loses: leaderships, with their epochs
--  FROM membridge_leaderships
-- loses: jobs of pushing and pulling
--  FROM membridge_jobs

DROP TABLE membridge_agents, membridge_projects, membridge_nodes, membridge_leaderships, membridge_jobs;
