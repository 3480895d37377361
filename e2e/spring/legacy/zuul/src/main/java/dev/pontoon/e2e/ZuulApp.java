package dev.pontoon.e2e;

import org.apache.coyote.http11.AbstractHttp11Protocol;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.web.embedded.tomcat.TomcatServletWebServerFactory;
import org.springframework.boot.web.server.WebServerFactoryCustomizer;
import org.springframework.cloud.netflix.zuul.EnableZuulProxy;
import org.springframework.context.annotation.Bean;

@SpringBootApplication
@EnableZuulProxy
public class ZuulApp {
  public static void main(String[] args) {
    SpringApplication.run(ZuulApp.class, args);
  }

  // Tomcat ends a connection after 100 requests, and Boot 2.3 has no property for it.
  @Bean
  WebServerFactoryCustomizer<TomcatServletWebServerFactory> keptAlive() {
    return factory ->
        factory.addConnectorCustomizers(
            connector -> {
              AbstractHttp11Protocol<?> http =
                  (AbstractHttp11Protocol<?>) connector.getProtocolHandler();
              http.setMaxKeepAliveRequests(-1);
              http.setKeepAliveTimeout(300_000);
            });
  }
}
