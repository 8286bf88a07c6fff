//! What the model API's provider can be asked to do beside writing a reply.

use crate::run::text_enum;

text_enum! {
    /// Something that the provider does outside while it answers: there no rule of ours judges where data goes.
    /// Source: the Messages API's documentation of server tools, URL sources and the MCP connector.
    ProviderTool, "tool of the provider" {
        /// `web_search_*`: words that the agent chooses go to a search engine.
        WebSearch = "web_search",
        /// `web_fetch_*`: pages that the agent chooses are fetched.
        WebFetch = "web_fetch",
        /// `code_execution_*`: programs run on the provider's machines.
        CodeExecution = "code_execution",
        /// `mcp_servers`, `mcp_toolset`: MCP servers that the agent chooses are called.
        McpConnector = "mcp_connector",
        /// Sources of type `url`: images and documents are fetched from where the agent chooses.
        UrlSources = "url_sources",
        /// Tools of types that this version does not know.
        Other = "other",
    }
}
