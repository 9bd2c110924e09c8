// The same work as the handler's: one row.
module.exports = async (payload, helpers) => {
	await helpers.query('INSERT INTO bench.graphile_rows (event_id) VALUES ($1)', [payload.event_id]);
};
