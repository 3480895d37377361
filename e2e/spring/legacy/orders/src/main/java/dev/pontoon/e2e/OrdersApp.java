package dev.pontoon.e2e;

import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Collectors;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.web.client.RestTemplateBuilder;
import org.springframework.cloud.client.discovery.DiscoveryClient;
import org.springframework.cloud.client.loadbalancer.LoadBalanced;
import org.springframework.context.annotation.Bean;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PathVariable;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.client.RestTemplate;

@SpringBootApplication
public class OrdersApp {
  public static void main(String[] args) {
    SpringApplication.run(OrdersApp.class, args);
  }

  @Bean
  @LoadBalanced
  RestTemplate balanced(RestTemplateBuilder builder) {
    return builder.setConnectTimeout(Duration.ofSeconds(1)).setReadTimeout(Duration.ofSeconds(2)).build();
  }

  @RestController
  static class OrdersController {
    private final RestTemplate rest;
    private final DiscoveryClient discovery;

    OrdersController(RestTemplate rest, DiscoveryClient discovery) {
      this.rest = rest;
      this.discovery = discovery;
    }

    /** A client-side balanced call without breaker or fallback: a failure shows as a 500. */
    @GetMapping("/plain/{sku}")
    Object plain(@PathVariable("sku") String sku) {
      return rest.getForObject("http://inventory/stock/" + sku, Map.class);
    }

    /** What the client library knows of the registry, by service. */
    @GetMapping("/known")
    Map<String, List<String>> known() {
      Map<String, List<String>> services = new TreeMap<>();
      for (String service : discovery.getServices()) {
        services.put(
            service,
            discovery.getInstances(service).stream()
                .map(instance -> instance.getHost() + ":" + instance.getPort())
                .sorted()
                .collect(Collectors.toList()));
      }
      return services;
    }
  }
}
