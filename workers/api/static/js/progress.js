/** How far a campaign is. */

import { get } from "./api.js";

/** @param {string} campaignId @returns {Promise<Record<string, number> | undefined>} Its tasks by state. */
export async function tasksOf(campaignId) {
  const { results } = await get("/api/progress");
  return results.find((/** @type {any} */ one) => one.campaign_id === campaignId)?.tasks;
}

/** @param {string} campaignId @returns {Promise<string>} Why it had no task to give, in words for the annotator. */
export async function whyNoTask(campaignId) {
  const tasks = await tasksOf(campaignId);
  if (!tasks) return "There is no image in this campaign yet: whoever runs it has to read some in first.";
  if (tasks.leased) return `Nothing else is left to label. Images that are being labeled now: ${tasks.leased}.`;
  return "Nothing is left to label in this campaign. Thank you!";
}
